"""Uruguay: the poet of the radio by the river, for whom every goal is an image and every match a tale."""

from zoo.data.cronica_text import Style

STYLE = Style(
    label="rioplatense_literario",
    opening=(
        "(Había en el aire|Flotaba entre los plátanos|Venía desde el río) un (olor a lluvia vieja|rumor de tamboriles|perfume de glicinas) cuando {home} y {away} (salieron a su cita|entraron en el círculo de cal|se miraron por primera vez), (aquel|el) {date}, (con los ojos hondos|con la luz sobre los hombros|como dos viejos rivales de cuento).",
        "(Cuentan los abuelos|Dicen en los boliches|Se murmura en los muelles) que (el fútbol nació|la pelota fue inventada|los domingos existen) para (días como este|que alguien los escriba|espantar la tristeza), y {home} con {away} (vinieron a darles la razón|le pusieron verbo y sangre|agregaron un capítulo) por la {league}.",
        "(El cielo|El atardecer|El horizonte) (tenía el color|guardaba el tono|era del matiz) (de los duraznos maduros|de las cartas antiguas|del vino derramado) el {date}, (y bajo esa luz|y al amparo de su sombra|y en esa penumbra) {home} y {away} (tejieron su leyenda|escribieron sobre el pasto|desataron su milonga).",
        "(Primero fue el silencio|Primero fue el viento|Primero fue un tambor lejano), (después|más tarde|luego) (la multitud como un mar|un oleaje de pañuelos|la garganta del pueblo), y al fin {home} y {away}, (dos barcos de papel|dos espejos enfrentados|dos mitades de un mismo sueño), (navegando|perdidos|mecidos) en la {league}.",
        "(Toda cancha es|Cada partido es|El fútbol es) un (libro abierto|espejo de agua|patio de infancia), y (en sus páginas|en su hondura|entre sus baldosas) {home} y {away} (dejaron|grabaron|bordaron) (una historia|una copla|una fábula) (de trabajo y asombro|con sabor a yerba y a río|que aún conmueve) el {date}.",
        "(Como dos viejos payadores|Como dos murgas en febrero|Como dos orillas del mismo río), {home} y {away} (se buscaron|se contestaron|se cantaron verdades) (sobre el verde|bajo las luces|a la hora del lubricán) por la {league}, (mientras el tiempo|mientras la ciudad|mientras el mundo) (hacía una pausa|apagaba sus relojes|contenía el suspiro).",
        "(Digamos que llovía|Digamos que era otoño|Digamos que había luna), (aunque nadie lo recuerde|aunque el almanaque lo niegue|que para eso está la memoria), porque {home} y {away} (llenaron la noche|poblaron el aire|alumbraron la jornada) (de pequeñas hazañas|de nostalgia y coraje|de preguntas sin respuesta) el {date}.",
        "(Allá lejos|Más allá del faro|Del otro lado del puerto), (donde la ciudad se hace campito|donde aún se juega descalzo|donde los gurises aprenden a soñar), alguien (encendió una radio|arrimó la oreja|cebó un mate) para (escuchar|saber|seguir) qué hacían {home} y {away} (por la|en la) {league}.",
    ),
    stadium=(
        "El {stadium} (era un navío anclado|parecía un caracol inmenso|semejaba una guitarra abierta) en medio (de la bruma|de la ciudad dormida|del invierno), con (sus luces de faro|su música de voces|el eco de otros años) (guardada|latiendo|viva) en (el cemento|cada grada|los escalones)."
        .replace("(sus luces de faro|su música de voces|el eco de otros años) (guardada|latiendo|viva)", "(sus faroles|su música de voces|el eco de otros años) (temblando|latiendo|resonando)"),
        "(Las piedras|Los muros|Los escalones) del {stadium} (guardan|recuerdan|atesoran) (historias de cuero y barro|pasos de gigantes idos|promesas de muchachos), y (esa noche|aquel día|entonces) (volvieron a murmurar|despertaron de su siesta|aprendieron un cuento nuevo)."
        .replace("esa noche|aquel día|entonces", "de pronto|aquel día|entonces"),
        "(Todo ocurrió|La historia sucedió|El cuento transcurre) en el {stadium}, (esa catedral sin techo|ese teatro de la intemperie|aquel jardín de los milagros), donde (los fantasmas también aplauden|la hierba sabe escuchar|cada sombra tiene un nombre).",
        "(Sobre|En torno a) las tribunas del {stadium} (caía una luz de acuarela|volaban los últimos pájaros|giraba lento el humo), (y uno se sentía niño|y daban ganas de quedarse|y parecía domingo para siempre), (lejos de todo|a salvo del olvido|de la mano de un padre).",
    ),
    attendance=(
        "(Había|Hubo|Fueron) {attendance} (testigos|corazones|miradas) (en vilo|a la deriva|en penumbras), (cada uno con su santo|un bosque de brazos|un mar de murmullos), (esperando|persiguiendo|soñando) (la misma luz|una señal|el instante).",
        "(Para contarlo|Para la memoria|Para que no se pierda), {attendance} (almas|voces|pares de ojos) (se apretaron|se acunaron|se reunieron) (como palomas en la cornisa|alrededor del fuego|bajo el mismo cielo), (tan distintas y tan juntas|y cada cual traía su duelo|y todas respiraban a la vez)."
        .replace("tan distintas y tan juntas|y cada cual traía su duelo|y todas respiraban a la vez", "y cada cual traía su duelo|y el frío se volvió abrigo|con la infancia en el bolsillo"),
        "{attendance} (personas|almas|gentes de barrio) (hicieron de la tribuna|volvieron las gradas|tejieron con sus voces) (un coro de pescadores|un río de luciérnagas|una sola garganta), (de esas que|de los que) (no se olvidan|la lluvia respeta|el viento copia)."
        .replace(", (de esas que|de los que) (no se olvidan|la lluvia respeta|el viento copia)", ", (y el viento|y la luna|y hasta la lluvia) (se detuvo a escuchar|tomó asiento|quiso quedarse)"),
        "(Ante|Frente a|Al abrigo de) {attendance} (almas|testigos|soñadores), (la pelota|la redonda|aquel cuero) (rodaba|iba y venía|giraba) (como una luna chica|como una moneda antigua|con pudor de novia), (de pie en pie|sin dueño|de orilla a orilla).",
    ),
    referee=(
        "(De negro|De luto riguroso|Con andar de escribano), {referee} (administraba|repartía|medía) (el bien y el mal|las culpas y los perdones|la justicia de los hombres) (con un silbato de lata|entre gritos y plegarias|sin pedir aplausos).",
        "(El juez|El árbitro|El hombre del silbato), {referee}, (caminó entre sombras|fue apenas una silueta|cruzó la escena) (como un monje|como un farolero|como un actor callado), y (eso también es un arte|nadie le dedicará un tango|así debe ser).",
        "(Un silbato|Un soplo|Una nota aguda), el de {referee}, (partía el aire|cortaba la bruma|ordenaba el caos) (cada tanto|de vez en vez|como un grillo), (y las pasiones obedecían|y la fábula seguía su curso|y todo volvía a empezar).",
        "A {referee}, el árbitro, (le tocó|le cupo|le fue dado) (el oficio ingrato|la soledad|el destino) (de quien pone puntos y comas|del que interrumpe los sueños|de cuidar las orillas), y (lo hizo con decoro|cumplió en silencio|no tembló su pulso).",
    ),
    goal_first=(
        "En el minuto {minute}, (cuando la bruma bajaba|mientras alguien cebaba un mate|cuando menos se lo soñaba), {scorer} (acarició|soltó|peinó) la pelota (como quien|igual que quien) (remonta un barrilete|apaga un candil|deja una carta), y {club} (floreció|amaneció|cantó).",
        "(Iba|Corría|Goteaba) el minuto {minute} cuando {scorer} (encontró|abrió|halló) (una rendija en la noche|la puerta secreta del área|un atajo de luz) y (la red se infló como una vela|el silencio se hizo trizas|nació la primera estrella) (de|para) {club}.",
        "Al minuto {minute} (se rompió el hechizo|cayó la primera gota|se encendió una lámpara): {scorer}, (de andar cansino y ojos de niño|con la zurda de un orfebre|solo como un faro), (escribió|bordó|talló) el gol (de|para) {club}.",
        "(Todo era espera|El cuento no tenía principio|La tarde bostezaba) hasta que, en el minuto {minute}, {scorer} (inventó|pronunció|soñó) (un verso de cuero|la palabra gol|un relámpago), y {rival} (quedó a la intemperie|sintió el otoño|miró caer las hojas).",
        "A los {minute} minutos, {scorer} (bailó un candombe|dibujó una elipse|hilvanó un suspiro) entre (piernas|sombras|juncos), y la pelota, (agradecida|enamorada|mansa), (durmió en la red|se acunó en el rincón|volvió a su nido) (por|para) {club}.",
        "(Vino de lejos|Nació en la orilla|Llegó con el viento) (la jugada|el centro) del minuto {minute}, (como llegan las cartas|lenta como un vals|con olor a puerto), y {scorer} (la besó de cabeza|le puso alas|la volvió gol) para {club}."
        .replace("(la jugada|el centro)", "la (jugada|madeja|caricia)"),
        "(La primera lágrima|El primer asombro|La primera flor) (tuvo fecha|brotó|cayó) en el minuto {minute}, (y fue|y llevó) (obra|firma) de {scorer}, (artesano|jardinero|poeta) (de {club}|al servicio de {club})."
        .replace("(y fue|y llevó) (obra|firma) de {scorer}", "(por obra|por gracia|por capricho) de {scorer}").replace("(de {club}|al servicio de {club})", "(callado|de manos limpias|de barrio) que (viste los colores|guarda los sueños) de {club}"),
    ),
    goal_equal=(
        "(Pero los sueños|Pero las penas|Mas los inviernos) (también terminan|no duran siempre|tienen orilla), y en el minuto {minute} {scorer} (devolvió la luz|emparejó las dos riberas|puso la balanza en paz): (empate|igualdad) de {club}.",
        "En el minuto {minute}, {scorer} (levantó la casa caída|cosió la herida|desandó la tristeza) con (un toque de seda|un zurdazo de tormenta|una caricia de cabeza), y {club} (igualó la historia|empató su destino|volvió a mirarse en el río).",
        "Al minuto {minute} (el espejo se completó|la balanza halló su centro|las dos orillas se tocaron): {scorer}, (hijo de la paciencia|con hambre de siglos|como un navegante terco), (firmó|rubricó|bordó) el empate (de|para) {club}.",
        "(La fortuna|La esperanza|La pelota), (esa gitana|esa muchacha esquiva|esa paloma), (cambió de vereda|volvió los ojos|pidió revancha) al minuto {minute}, y {scorer} (la tomó de la cintura|le dijo que sí|la llevó a la red): (igualdad|tablas) de {club}.",
        "Corría el minuto {minute} y {rival} (soñaba despierto|contaba sus monedas|cantaba bajito), pero {scorer} (trajo la tormenta|golpeó a su puerta|apagó la guitarra) y (todo volvió al principio|el cuento quedó empatado|nadie fue dueño de nada).",
    ),
    goal_ahead=(
        "En el minuto {minute} (el viento eligió bando|la luna se inclinó|el destino movió su alfil): {scorer}, (de pies descalzos en la memoria|con sigilo de gato|como un rayo manso), (puso|llevó|subió) a {club} (un escalón arriba|por encima del tiempo|a la cresta de la ola).",
        "(Y entonces|Y de repente|Y como en los cuentos), al minuto {minute}, {scorer} (desató el nudo|quebró el equilibrio|tiró del hilo) con (un remate de guitarra|un gesto antiguo|un suspiro de zurda), y {club} (volvió a sonreír|miró desde la cumbre|fue primavera).",
        "A los {minute} minutos {scorer} (juntó los pedazos|reunió a los duendes|cruzó el puente) y (dejó|depositó|posó) la pelota (donde anidan las golondrinas|en la esquina del olvido|al fondo de la noche): {club} (mandaba|iba adelante|estaba arriba) (de nuevo|otra vez|al fin)."
        .replace(" (de nuevo|otra vez|al fin)", ""),
        "(Nadie lo vio venir|Venía caminando|Traía el sol en la espalda): {scorer}, en el minuto {minute}, (deshizo el empate|rompió la simetría|partió en dos la jornada) y {rival} (se quedó sin palabras|sintió la garúa|bajó la mirada).",
        "Al minuto {minute}, (la trama|la balada|la marea) (pidió|exigió|quiso) (un héroe|otro nombre|un desenlace), y {scorer} (acudió|respondió|dio un paso): (gol y delantera|gol y alborada) para {club}, (tambores|campanas|pañuelos) (en el pecho|en la tribuna).",
    ),
    goal_more=(
        "En el minuto {minute}, {scorer} (agregó otra estrofa|sumó otra hoja|encendió otra vela), y {club} (ensanchó el río|hizo más alta su torre|siguió bordando), mientras {rival} (se deshojaba|naufragaba en silencio|contaba sus ausencias).",
        "(Llovía sobre mojado|Seguía la fiesta|La herida era honda) cuando, al minuto {minute}, {scorer} (dejó caer|volcó|derramó) (otra gota de tinta|un puñado de estrellas|otro trueno) sobre (la red|el arco|la noche) de {rival}.",
        "Corría el minuto {minute} y {club} (era pura marea|jugaba de memoria|caminaba sobre el agua): {scorer} (puso la rúbrica|la empujó con ternura|la mandó a dormir), y (la distancia|la pena ajena|la alegría) (se hizo más honda|creció como la hiedra|fue más ancha).",
        "A los {minute} minutos (otra campana|otro farol|otra flor) (para|en el balcón de) {club}: {scorer}, (generoso|inspirado|luminoso), (pintó|cinceló|deshojó) (un gol de acuarela|una diagonal perfecta|la última resistencia) de {rival}."
        .replace("(pintó|cinceló|deshojó) (un gol de acuarela|una diagonal perfecta|la última resistencia) de {rival}", "(pintó|cinceló|bordó) (un gol de acuarela|una diagonal de vidrio|otro arabesco) que {rival} (miró desde la niebla|no sabrá olvidar|sufrió callado)"),
        "(No conforme|Sin saciarse|Con sed de siglos), {club} (volvió|regresó|bajó) (al pozo|a la fuente|al río), y al minuto {minute} {scorer} (trajo el agua|sacó otra moneda|bebió primero): (más lejos|más solo|más pequeño) (quedó|parecía) {rival}.",
    ),
    goal_less=(
        "(Hay dignidades|Hay rebeldías|Hay fuegos) que (no se apagan|sobreviven a la lluvia|se heredan), y en el minuto {minute} {scorer} (sopló la brasa|acortó la pena|achicó la noche) para {club}, (todavía lejos|aún en la otra orilla|siempre cuesta arriba).",
        "En el minuto {minute}, {scorer} (plantó una semilla|abrió una ventana|arrimó un leño) en (el invierno|la ruina|la pena) de {club}: (era un descuento|era apenas un gol|era poco), (pero olía a pan|pero tenía luz|pero también se vive de eso).",
        "Al minuto {minute} (asomó|brilló|tembló) (una luciérnaga|una vela|un fósforo) para {club}: {scorer} (descontó|recortó la distancia|achicó el abismo) (con rabia dulce|entre la niebla|sin levantar la voz), (y alguien volvió a creer|y el cuento siguió abierto|y se oyó un tambor).",
        "(Caído y sin embargo de pie|Herido pero entero|Con el barro en la frente), {club} (buscó|remó|anduvo) hasta que en el minuto {minute} {scorer} (encontró un trozo de cielo|acortó el camino|recuperó una página), (y dolió un poco menos|aunque la cuesta seguía|y nació la duda).",
        "Corría el minuto {minute} cuando {scorer} (desempolvó|rescató|sacó del arcón) (un viejo coraje|un tango olvidado|la esperanza) y (descontó|acercó las orillas) para {club}, (náufrago todavía|aún a la sombra|sin alcanzar la playa).",
    ),
    goal_again=(
        "(Otra vez él|De nuevo su sombra|Siempre el mismo duende): en el minuto {minute} {scorer} (repitió el conjuro|volvió a afinar la guitarra|firmó otra página), y {club} (le debe una estatua de aire|lo abrazó como a un hijo|aprendió su música).",
        "En el minuto {minute}, {scorer}, (que ya era dueño del relato|que ya había pintado lo suyo|incansable como el río), (volvió|regresó|retornó) (a la fuente|al lugar del milagro|por otra estrella), (para dicha|para gloria) de {club}.",
        "Al minuto {minute} {scorer} (insistió|reincidió|volvió) (con su ternura feroz|con su pie de relojero|con su don antiguo), y (ya nadie preguntó|ya no hubo asombro|todos entendieron): (hay hombres|hay tardes|hay zurdas) (tocados por la luna|de otra madera|que juegan con los dioses)."
        .replace("(hay hombres|hay tardes|hay zurdas) (tocados por la luna|de otra madera|que juegan con los dioses)", "hay (hombres|muchachos|artistas) (tocados por la luna|de otra madera|que juegan con los duendes)"),
        "(Quien dio la primera flor|Quien ya había cantado|Quien supo abrir la noche) (trajo otra|volvió a hacerlo|no se detuvo) en el minuto {minute}: {scorer}, (hilandero|titiritero|marinero) de {club}, (y la red tembló|y la hierba lo supo|y cayó otro pétalo)."
        .replace("(trajo otra|volvió a hacerlo|no se detuvo)", "(insistió|volvió a hacerlo|no se detuvo)"),
        "Corría el minuto {minute}, y {scorer}, (con la paciencia del pescador|con la obstinación de la ola|con manos de sembrador), (tendió otra vez la red|cosechó de nuevo|regresó al mismo verso): {rival} (solo pudo mirar|agachó la frente|calló).",
    ),
    short_goal=(
        "Al minuto {minute}, {scorer} (sumó otro verso|prendió otra vela|abrió otra flor).",
        "En el minuto {minute} (la red suspiró|tembló la noche|cantó el cuero): {scorer}.",
        "{scorer} (pintó|talló|soñó) (el suyo|otro gol) en el minuto {minute}.",
        "Minuto {minute}: (un relámpago|una caricia|un latido) de {scorer}.",
        "A los {minute} minutos, {scorer} (soltó otra paloma|agregó su estrofa|dejó su huella).",
        "(Otra campana|Otro pétalo|Otro trueno) al minuto {minute}, (firmado por|obra de) {scorer}.",
    ),
    filler=(
        "(La pelota|La redonda|El cuero), (vieja amiga de los solitarios|que sabe más que los hombres|caprichosa como el mar), (iba de {home} a {away}|pasaba de mano en mano|vagaba entre los juncos) (sin jurar amor a nadie|buscando un regazo|como una pregunta)."
        .replace("pasaba de mano en mano", "andaba de zapato en zapato"),
        "(En la tribuna|Allá arriba|Junto al alambrado) (un viejo|una abuela|un botija) (lloraba bajito|rezaba sin santos|contaba con los dedos), (y nadie preguntó por qué|porque hay amores que duelen|mientras caía la garúa) sobre (los hombros|las banderas|el mundo).",
        "(El número diez|El puntero|El más menudo) de {home} (jugaba|corría|danzaba) como (se juega en los sueños|si el pasto fuera agua|corren los niños en la playa), (sin deberle nada al tiempo|con una flor en el botín|descalzo por dentro)."
        .replace("como (se juega en los sueños|si el pasto fuera agua|corren los niños en la playa)", "como (se camina en los sueños|anda la espuma|van los niños por la playa)"),
        "(El arquero|El guardián|El solitario) de {away} (voló|se estiró|se elevó) (como un albatros|como una cometa|como un trapecista), (y en sus guantes|y en sus manos|y en su pecho) (se apagó un incendio|murió una canción|quedó preso un trueno).",
        "(Hubo|Quedaron|Nacieron) (silencios|pausas|esperas) (largas como inviernos|de pan y vino|de esas que envejecen), y en ellas {home} (afinaba su guitarra|juntaba leña|aprendía la paciencia) (sin prisa|a la luz de un candil|como los pescadores)."
        .replace("(silencios|pausas|esperas) (largas como inviernos|de pan y vino|de esas que envejecen)", "(treguas|pausas|esperas) (largas como inviernos|de pan y vino|de esas que envejecen)"),
        "(El barro|El rocío|La hierba) (recordaba|guardaba|custodiaba) (los pasos|las huellas|el nombre) de (los que ya no están|tantos muchachos idos|los viejos maestros), y {away} (jugó con ese respeto|caminó sobre esa ausencia|puso allí su ofrenda).",
        "(Ganar o perder|El triunfo y la derrota|La gloria y el olvido), (decía mi abuelo|escribió alguien en un muro|se oye en los cafés), (son apenas dos esquinas|caben en la misma valija|beben del mismo vaso), y (lo demás es camino|el fútbol lo sabe|la vida sigue jugando).",
        "(Cada pase|Cada gambeta|Cada despeje) de {home} (era una carta|era un puente|era un farol) (tendido hacia la otra orilla|sin remitente|en medio de la bruma), (y a veces|y algunas veces|y muy de tanto en tanto) (alguien respondía|llegaba a puerto|hubo respuesta)."
        .replace("(era una carta|era un puente|era un farol) (tendido hacia la otra orilla|sin remitente|en medio de la bruma)", "(parecía una carta|parecía una botella|parecía una plegaria) (lanzada al mar|sin remitente|en medio de la bruma)"),
        "(Desde los balcones|Desde el puerto|Desde las azoteas) (llegaba|venía|bajaba) (un bandoneón|una cuerda de tambores|el rumor del agua), y los de {away} (acompasaron el trote|parecían bailarlo|se dejaron llevar) (sin saberlo|con los ojos cerrados|a media luz).",
        "(El tiempo|El reloj|La jornada), (ese ladrón|ese viejo avaro|ese río sin puentes), (se llevaba los minutos|robaba las horas|goteaba), (y {home} y {away}|y los veintidós muchachos|y todos nosotros) (querían detenerlo|lo miraban pasar|envejecían jugando)."
        .replace("(El tiempo|El reloj|La jornada)", "(El tiempo|El reloj|El almanaque)").replace("envejecían jugando", "temían su fuga").replace("y todos nosotros", "y también los poetas"),
        "(Un perro|Una paloma|Un papel) (cruzó|atravesó|visitó) el área (en plena jugada|como en los potreros|sin pedir permiso), y (por un instante|durante un suspiro|entre la risa) (volvimos a la infancia|todo fue más tierno|el mundo tuvo arreglo).",
        "(Los viejos|Los nostálgicos|Los que peinan canas) (juraban|sostenían|susurraban) que (ya no se juega así|antes la pelota cantaba|todo fue mejor), y {away} (los desmintió con un taco|les regaló una pared|les puso un nudo en la garganta) (que olía a potrero|de otro siglo|hecho de aire)."
        .replace("(los desmintió con un taco|les regaló una pared|les puso un nudo en la garganta) (que olía a potrero|de otro siglo|hecho de aire)", "(los desmintió con un taco|les regaló un caño|les dedicó un amague) (que olía a potrero|de otro siglo|hecho de aire)"),
        "(Hay quien|Alguno|Más de uno) (busca en la cancha|encuentra en este juego|pide a la pelota) (lo que la vida niega|un padre perdido|su propia orilla), y (esa sed|ese anhelo|esa lumbre) (empujaba a {home}|temblaba en el aire|sostenía las banderas).",
    ),
    goalless=(
        "(No hubo flor|El gol no quiso nacer|La red durmió intacta), (pero {home} y {away}|y aun así {home} y {away}) (regaron la tierra|dejaron caricias|se contaron secretos) (con la paciencia de los sembradores|como quien escribe en la arena|bajo la misma luna).",
        "(La pelota besó el palo|El travesaño lloró cal|El poste dijo que no), y {home} (se quedó|permaneció|sintió) (mirando el horizonte|a la orilla del milagro|con la copla en los labios), (como los novios en el andén|igual que un barco sin viento|sin encontrar consuelo)."
        .replace("(se quedó|permaneció|sintió)", "(se quedó|permaneció|siguió)"),
        "(El gol|Aquel gol|Ese gol), (pájaro esquivo|huésped que no llega|fantasma de las áreas), (rondó|visitó|merodeó) (la casa de {home}|los sueños de {away}|las dos orillas) y (se marchó en puntillas|no dejó señas|volvió a su niebla)."
        .replace("(rondó|visitó|merodeó)", "(rondó|visitó|sobrevoló)"),
        "{away} (remó|caminó|porfió) (contra la corriente|por senderos de niebla|a la luz de un fósforo), (y cuando halló la puerta|y al tocar la aldaba|y al borde del poema) (un guante la cerró|le faltó la llave|se le apagó el verso).",
        "(Fue un partido|Fue una historia) (sin puntos finales|de puertas entornadas|hecha de esperas), (con más suspiros que gritos|de esas que no cuentan los diarios|donde todo quedó por decirse), y (los poetas lo agradecen|también eso conmueve|el silencio fue un personaje)."
        .replace("(Fue un partido|Fue una historia)", "(Fue una historia|Fue una novela|Fue una balada)").replace("los poetas lo agradecen", "los poetas lo celebran"),
        "(El guardián|El arquero|El centinela) de {home} (atrapó una estrella|descolgó la luna|abrazó un relámpago) (que ya era canto ajeno|cuando nadie lo esperaba|con manos de panadero), y (la noche|la tribuna|el viento) (le hizo reverencia|quedó en deuda|suspiró).",
        "(Ante el arco vacío|Frente a la red desnuda|A un paso de la gloria), (un muchacho|el delantero|el hombre triste) de {away} (miró las nubes|pensó de más|escuchó una voz) y (la mandó|el remate se fue|la dejó ir) (al barrio de los sueños perdidos|hacia el río|con las gaviotas)."
        .replace("(la mandó|el remate se fue|la dejó ir)", "(la mandó|la soltó|la dejó ir)"),
        "(Ninguno|Nadie|Ningún bando) (supo|pudo|quiso) (romper el cristal|abrir el cofre|despertar a la red), (y quizá era justo|y acaso estaba escrito|como en ciertos amores), (porque hay silencios|que hay silencios|pues existen silencios) (que también cantan|de música secreta|más hondos que un grito)."
        .replace("que hay silencios", "ya que hay silencios"),
        "(Rodaron|Pasaron|Cayeron) (los minutos|las horas|las nubes) (como hojas|como cuentas de un rosario|sobre el río), y el cero, (redondo como la luna|terco como un ancla|ese anillo vacío), (siguió allí|no se movió|quedó mirando) (entre {home} y {away}|desde su ventana|hasta el final).",
    ),
    close_win=(
        "(Así|De ese modo|Con tales acordes) (terminó|se cerró|concluyó) (el cuento|la historia|la balada): {score}, con {winner} (subido a la cresta del asombro|bebiendo la luz|cantando bajo la lluvia) y {loser} (juntando los pétalos|en el andén de la tristeza|a solas con su sombra).",
        "(Quedará escrito|Se contará en los boliches|Lo dirán los tambores): {winner} (venció|doblegó) a {loser} por {score}, (y la noche|y el río|y la ciudad) (se vistió de murga|guardó la noticia|tuvo otra canción), (mientras los vencidos|mientras los otros) (se iban despacio|apagaban los faroles|buscaban un abrazo)."
        .replace("(venció|doblegó) a {loser}", "(venció|doblegó|pudo más que) {loser}").replace("(venció|doblegó|pudo más que) {loser}", "(venció a|doblegó a|pudo más que) {loser}"),
        "El {score} (cabe en una línea|es apenas una cifra|se anota en un papel), pero la alegría de {winner} (necesita un libro|desborda el puerto|no cabe en el pecho), y la pena de {loser}, (honda como un aljibe|callada y digna|de esas que enseñan), (pide un tango|busca su consuelo|sabrá esperar).",
        "(Al apagarse las luces|Cuando el silencio volvió|Al bajar el telón), {winner} (guardaba|llevaba|abrazaba) un {score} (contra el pecho|como un tesoro de infancia|en el fondo del bolsillo), y {loser} (caminó hacia la niebla|miró el río|se llevó su duelo), (que la vida es así|hermoso en su derrota|sin rencores).",
        "{winner} (escribió|firmó|grabó) {score} (en la corteza del tiempo|con tinta de luna|sobre el agua), y (frente a|ante) {loser} (dejó su rúbrica|fue marea alta|supo ser poeta y herrero), (de esos triunfos|una de esas noches) que (los hijos heredan|el olvido respeta|se recuerdan con mate)."
        .replace("(de esos triunfos|una de esas noches)", "(en uno de esos triunfos|en una de esas jornadas)").replace("se recuerdan con mate", "la memoria pule"),
        "(Fue de|Se la llevó|La historia eligió a) {winner}, {score}, (por obra del viento|por el peso de su música|por pura porfía), y a {loser} le (quedan|restan|tocan) (las migas del banquete|los versos tristes|un puñado de ceniza), (acaso mañana|quizá en otra estación|cuando vuelva la primavera) (cante de nuevo|florezca|halle revancha)."
        .replace("(Fue de|Se la llevó|La historia eligió a) {winner}", "(La jornada fue de|La luna eligió a|El destino señaló a) {winner}").replace(", (acaso mañana|quizá en otra estación|cuando vuelva la primavera) (cante de nuevo|florezca|halle revancha)", ", (aunque acaso mañana|aunque quizá en otra estación|y tal vez otro domingo) (cante de nuevo|florezca su rama|halle revancha)"),
        "(Cae el telón|Se apagan los faroles|Duerme la hierba) y (brilla|queda|resuena) un {score}: {winner}, (dueño de la fábula|hijo dilecto de la noche|con la risa de los gurises), (festeja entre tambores|canta hasta el alba|no quiere despertar), y {loser} (pliega sus velas|dobla en silencio las banderas|espera otra marea).",
    ),
    close_draw=(
        "(Así|De ese modo|Con tales acordes) (terminó|se cerró|concluyó) (el cuento|la historia|la balada): {score}, {home} y {away} (en la misma orilla|compartiendo el pan|como hermanos de agua), (sin vencidos que llorar|con el amor a medias|y un abrazo pendiente).",
        "El {score} (parte la luna en dos|reparte el pan|deja la puerta entornada): la mitad (del canto|del cielo|del vino) para {home}, la otra (mitad|parte|porción) para {away}, y (para nosotros|para los poetas|para el recuerdo) (la melancolía|el paisaje|lo que pudo ser).",
        "(Ninguno ganó|Nadie fue vencido|No hubo dueño), {score}, (y acaso fue lo justo|como en los amores parejos|y el río siguió su curso): {home} y {away} (se fueron juntos|partieron en silencio|colgaron los botines) (con la misma luna a cuestas|cada cual con su medio sueño|bajo la garúa).",
        "(Quedará escrito|Se contará en los boliches|Lo dirán los tambores): {score}, (un empate|una igualdad|un pacto) (de caballeros|con sabor a despedida|como dos espejos), y {home} (miró a {away}|saludó a {away}) (con el respeto de los viejos duelistas|a los ojos|sombrero en mano).",
        "(Al apagarse las luces|Cuando el silencio volvió|Al bajar el telón), el {score} (seguía brillando|quedó flotando|colgaba del aire) (como un farol|sobre el pasto|entre la bruma), y {home} y {away} (supieron|comprendieron|sintieron) que (algunas historias no se terminan|el destino también duda|hay treguas hermosas).",
        "(Dos orillas|Dos guitarras|Dos soledades) y un {score}: {home} (puso el fuego|trajo la leña|dio la primera copla), {away} (sopló la brasa|puso la lluvia|contestó con otra), y (del fogón|de la payada|de aquel duelo) (salieron hermanados|nadie se levantó más rico|quedó un humo dulce).",
    ),
    signature=(
        "(La pelota|La vida|La memoria), (ese|aquel) barrilete (sin dueño|de la infancia|que nadie alcanza), (sigue subiendo|se pierde entre las nubes|busca otro cielo) (mientras haya un niño que la mire|cuando todos se han ido|y nosotros con ella).",
        "(Queda|Permanece|Flota) en el aire (un poema|una sinfonía|una rara magia) (escrito con los pies|de barro y de luna|que no necesita palabras), (y alguien|y un botija|y el viento) la tararea (camino a casa|junto al río|sin saberlo)."
        .replace("(escrito con los pies|de barro y de luna|que no necesita palabras), (y alguien|y un botija|y el viento) la tararea", "(hecho de pasos y de lluvia|de barro y de luna|que no necesita palabras), (y alguien|y un botija|y el viento) (se lo lleva puesto|lo sueña|lo guarda)").replace("hecho de pasos y de lluvia", "con sabor a lluvia").replace("(se lo lleva puesto|lo sueña|lo guarda)", "(anda silbando|va cantando|sigue soñando)"),
        "(Al fin y al cabo|Después de todo|Bien mirado), (el fútbol es|este juego es|una cancha es) (el alma de un pueblo|un poema con barro|una sinfonía de zapatos) (puesta a rodar|bajo la luna|a la orilla del río), (y por eso duele|y por eso canta|nada menos).",
        "(Se fueron todos|Se apagó la última luz|La ciudad duerme), pero (el alma|la magia|la sinfonía) (del juego|de los humildes|de la jornada) (sigue allí|ronda la hierba|se queda conversando), (como un perro fiel|con los fantasmas|hasta mañana).",
        "(Mañana|Algún día|Cuando seamos viejos) (contaremos|diremos|vamos a jurar) que (el alma cabía en una pelota|hubo magia en ese pasto|un barrilete cruzó la noche), (y nadie|y quizá nadie|y tal vez ninguno) (nos va a creer|pedirá pruebas|sabrá olvidarlo)."
        .replace("(contaremos|diremos|vamos a jurar)", "(contaremos|diremos|juraremos)"),
        "(Porque|Que|Y es que) (a veces|de tanto en tanto|muy pocas veces) (la pelota|el cuero) (también|todavía) (es|se vuelve) (poema|magia|alma), y entonces (la muerte espera afuera|el tiempo se descalza|los hombres son buenos) (por un rato|hasta el alba)."
        .replace("(Porque|Que|Y es que)", "(Es verdad que|Será que|Y es que)").replace("(también|todavía) (es|se vuelve) (poema|magia|alma)", "(todavía|también|aún) se (vuelve poema|hace magia|llena de alma)"),
        "(Suena|Vuelve|Se oye) (un bandoneón lejano|el tambor de la esquina|la última copla), y (con él|en su compás|a su lado) (se duerme el alma|termina el poema|se aleja el barrilete) de (esta historia|una noche cualquiera|los que saben mirar)."
        .replace("y (con él|en su compás|a su lado)", "y (con esa música|en su compás|al oírla)"),
        "(Nadie|Ningún relojero|Ningún sabio) (pudo explicar|supo decir|ha de medir) (la magia|el alma|la sinfonía) (de un pase|de este juego|de una gambeta), (y por suerte|y ojalá|y quizá) (nadie pueda nunca|quede en secreto|sea siempre un misterio)."
        .replace("(y por suerte|y ojalá|y quizá) (nadie pueda nunca|quede en secreto|sea siempre un misterio)", "(y ojalá|y quizá|y acaso) (nadie pueda nunca|quede siempre en secreto|siga siendo un misterio)"),
    ),
)
