"""Argentina: the analyst with the chalk in his hand, who explains every goal before he celebrates it."""

from zoo.data.cronica_text import Style

STYLE = Style(
    label="rioplatense_tecnico",
    opening=(
        "(Hay partidos que se explican|Hay duelos que se entienden|Existen encuentros que se resuelven) desde (el mediocampo|el pizarrón|la pelota parada), y este {home} frente a {away}, por la {league}, (merece esa lectura|entra en esa categoría|sirve de ejemplo), (con matices|con detalles|con argumentos) de sobra.",
        "(Vale detenerse en|Conviene repasar|Corresponde analizar) el (planteo|dibujo|funcionamiento) que {home} y {away} (propusieron|ensayaron|llevaron a la cancha) el {date}, (porque ahí se esconde|donde se cifra|que explica) (buena parte|lo esencial|lo medular) (del desarrollo|del trámite|de la disputa).",
        "(Desde el arranque|De movida|Con el correr de los minutos) quedó (claro|expuesto|a la vista) que {home} (pretendía|buscaba|reclamaba) (la tenencia|la iniciativa|el control de la pelota) y que {away} (elegía esperar|apostaba a la contra|prefería salir rápido), (por la|en un partido de la|dentro de la) {league}.",
        "(Más allá del resultado|Lejos de las pasiones|Sin dramatismos), el encuentro entre {home} y {away} (ofreció|dejó|entregó) (material de sobra|varias lecturas|elementos valiosos) para (analizar|discutir|mirar con lupa): (perfiles|relevos|coberturas), (ritmos|alturas|duelos individuales) y (errores no forzados|pelota parada|segundas jugadas).",
        "(Línea de cuatro|Línea de tres|Doble cinco) y (extremos abiertos|enganche suelto|laterales profundos) para {home}; (orden|repliegue|paciencia) y (salida directa|velocidad por afuera|pases a la espalda) para {away}: (así se presentaron|ese fue el mapa inicial|tal era el libreto) (en la|para la|por la) {league}.",
        "(El análisis|La lectura|Todo repaso) de este encuentro (arranca|empieza|parte) (por|de) una (pregunta|duda|incógnita): cómo {home} (pensaba romper|iba a vulnerar|imaginaba desarmar) (el retroceso|la última línea|el orden) de {away}, (un rival|un adversario|un equipo) (bien trabajado|de oficio|difícil de leer).",
        "Con (herramientas similares|recursos distintos|libretos opuestos), {home} y {away} (disputaron|jugaron|protagonizaron) el {date} un (choque|duelo|partido) (de estrategia|de paciencia|de lectura fina) en el que (cada detalle|cada movimiento|cada relevo) (tuvo su peso|contó|valió doble).",
        "(Dicen los entrenadores|Se enseña en los cursos|Repiten los manuales) que (el orden|la ocupación de espacios|la toma de decisiones) (define|condiciona|inclina) (los partidos parejos|las paridades|cualquier desarrollo), y {home} y {away} (lo ratificaron|dieron otra prueba|lo dejaron en evidencia) (por la|en la) {league}.",
        "(Primera observación|Un apunte inicial|Punto de partida): (el planteo|el plan|la idea) de {home} (exigía|suponía|demandaba) (amplitud|circulación veloz|laterales altos), mientras que {away} (respondía|contestaba|se defendía) con (un retroceso prolijo|marcas escalonadas|dos líneas cercanas) en (la|su partido de la) {league} del {date}.",
    ),
    stadium=(
        "(El encuentro se disputó|La cita tuvo lugar|El análisis se ubica) en el {stadium}, (con el campo en buen estado|sobre un césped veloz|con una cancha de medidas amplias), (dato|detalle|factor) (nada menor|atendible|a considerar).",
        "(Las dimensiones|El piso rápido|La amplitud) del {stadium} (favoreció|condicionó|invitó a) (el juego por las bandas|la circulación de pelota|los cambios de frente), (como era previsible|conviene subrayarlo|según se observó)."
        .replace("Las dimensiones|El piso rápido|La amplitud", "El ancho|El piso rápido|La amplitud"),
        "(El escenario|La sede|El marco) fue el {stadium}, (donde el viento incidió poco|cuyo piso ayudó al pase|que se prestó a la pelota al ras), (un contexto|una variable|un elemento) que (también juega|hay que computar|no conviene omitir).",
        "En el {stadium} (se vio|hubo|se jugó) (una partida de ajedrez|un duelo de pizarrones|un partido de trazo fino), con (los espacios contados|poco margen de error|el mediocampo muy poblado).",
    ),
    attendance=(
        "(La concurrencia|El registro|La taquilla) (indicó|arrojó|informó) {attendance} espectadores, (un contexto|un número|un dato) que (agrega presión|incide en los ritmos|suele pesar) (en la toma de decisiones|sobre el local|a la hora de arriesgar).",
        "(Ante|Frente a|A la vista de) {attendance} espectadores, (ambos cuerpos técnicos|los dos entrenadores|las dos bancas) (sostuvieron|respetaron|mantuvieron) (la idea original|lo ensayado en la semana|el plan previsto).",
        "(Con|Bajo la mirada de) {attendance} personas en las tribunas, (administrar los tiempos|elegir bien el pase|manejar la ansiedad) (resultaba|era|pasaba a ser) (una virtud|casi una obligación|parte del trabajo).",
        "(Hubo|Se contaron) {attendance} (asistentes|espectadores|presentes), y (el entorno|la exigencia externa|ese clima) (tampoco alteró|apenas modificó|no desordenó) (los movimientos ensayados|el funcionamiento colectivo|la disciplina táctica).",
    ),
    referee=(
        "El (árbitro|juez|referí) {referee} (permitió el roce|dejó jugar|sostuvo un criterio parejo) y (el ritmo lo agradeció|eso favoreció la continuidad|evitó que el trámite se cortara).",
        "(El arbitraje|La conducción|La labor) de {referee} (fue correcta|resultó sobria|no ofreció reparos)".replace("(El arbitraje|La conducción|La labor)", "(La tarea|La conducción|La labor)")
        + ", (con pocas infracciones tácticas sin sancionar|atenta a los agarrones en el área|con buen uso de la tarjeta).",
        "{referee}, (a cargo del arbitraje|encargado de impartir justicia|el árbitro), (se ubicó cerca de la jugada|leyó bien los contactos|midió con la misma vara) y (acertó en lo importante|no incidió en el desarrollo|interrumpió lo justo).",
        "(En el arbitraje|Como juez|Con el silbato) estuvo {referee}, (de buena ubicación|preciso en lo técnico|firme en lo disciplinario), (aunque discutido en algún roce|sin influencia en el desarrollo|con apenas detalles a revisar).",
    ),
    goal_first=(
        "Al minuto {minute}, tras (una recuperación alta|un quite en campo ajeno|una salida fallida de {rival}), {scorer} (atacó el espacio|definió con criterio|resolvió sin apuro) y (abrió el marcador|puso en ventaja a {club}|rompió la paridad).",
        "La (primera diferencia|apertura|ventaja inicial) llegó (a los|con el reloj en los) {minute} minutos: (desborde por afuera|cambio de frente|pared por adentro), (centro atrás|pase filtrado|retroceso lento) y (definición|remate|llegada limpia) de {scorer} (para|en favor de) {club}.",
        "En el minuto {minute} (se rompió|se quebró|cedió) la (paridad|resistencia|igualdad): {scorer} (ganó la espalda del central|leyó el segundo palo|apareció libre por el medio) y (sacó ventaja|marcó el primero|anotó) para {club}.",
        "(Un error en la salida|Una pérdida en la mitad|Una mala cobertura) de {rival}, en el minuto {minute}, (habilitó|dejó mano a mano|le abrió el camino) a {scorer}, (certero en el cruce|preciso en la ejecución|frío en la definición): (ventaja|diferencia|gol) de {club}.",
        "Corría el minuto {minute} cuando {club} (encontró el hueco|juntó varios pases|aceleró por el carril central) y {scorer}, (desde la medialuna|de primera|tras un control orientado), (quebró el cero|abrió el marcador|convirtió).",
        "{scorer} (interpretó mejor que nadie|aprovechó|capitalizó) (una segunda pelota|un rebote en el área|el desajuste de la zaga) al minuto {minute} y (adelantó|puso en ventaja|colocó arriba) a {club}, (por peso propio|casi por decantación|acaso lo más lógico).",
        "La pelota parada (pesó|definió|destrabó) a los {minute} minutos: (córner cerrado|tiro libre combado|envío al primer palo), (marca perdida|cortina prolija|salto tardío) y (cabezazo|anticipo|toque) de {scorer} (para|a favor de) {club}.",
        "(Superioridad numérica por la derecha|Triangulación por izquierda|Diagonal bien tirada) en el minuto {minute}, y {scorer}, (llegando desde atrás|sin marca|con tiempo y perfil), (inauguró|estrenó|abrió) el marcador (para|en beneficio de) {club}.",
    ),
    goal_equal=(
        "(La corrección táctica|El ajuste|El retoque) (de {club} tuvo premio|dio resultado|surtió efecto) al minuto {minute}: {scorer} (cerró la jugada|pisó el área por sorpresa|llegó vacío al segundo palo) y (niveló|equilibró|emparejó) el marcador.",
        "A los {minute} minutos (se restableció|volvió|apareció) la (igualdad|paridad): {scorer}, (entre líneas|a espaldas del cinco|tras un pase vertical), (castigó|desnudó|expuso) (el retroceso|la desatención|el mal relevo) de {rival}.",
        "En el minuto {minute}, {club} (movió la pelota|cambió de frente|cargó el área) con (criterio|sentido|paciencia) y {scorer} (selló el empate|equilibró la cuenta|puso la paridad), (consecuencia lógica del volumen ofensivo|algo que el trámite insinuaba|un acto de jerarquía).",
        "(El empate|La igualdad) (de {club} se construyó|nació|se gestó) (desde la presión|con un quite oportuno|por la banda débil) en el minuto {minute}, y {scorer} (le puso la firma|ejecutó con precisión|completó la maniobra).",
        "{rival} (perdió la marca|defendió lejos|midió mal la línea) y, al minuto {minute}, {scorer} (lo pagó con gol|capitalizó el desacople|no dudó): (igualdad|tablas|equilibrio) (en el marcador|y todo por rehacer|en las cifras)."
        .replace("lo pagó con gol", "lo castigó"),
        "Corría el minuto {minute} cuando (un tiro libre|un saque de esquina|un lateral largo) (encontró|ubicó|halló) a {scorer} (sin custodia|libre de marcas|mejor perfilado), y {club} (igualó|emparejó las cosas|recuperó la paridad).",
    ),
    goal_ahead=(
        "Al minuto {minute} {club} (recuperó|retomó|tomó) la ventaja: {scorer} (picó al vacío|rompió la línea|descargó y fue a buscar), (ganó el duelo|definió abajo|eligió el palo correcto) y (desniveló|inclinó el trámite|volcó el marcador).",
        "(La diferencia|El desnivel|El quiebre) (apareció|llegó) en el minuto {minute}, cuando {scorer} (atacó el intervalo|se asoció por dentro|anticipó en el primer palo) y (volvió a romper|destrabó|desarmó) (la igualdad|una paridad trabajosa|el equilibrio), (gol|mérito|acierto) de {club}.",
        "A los {minute} minutos, (una contra de manual|un contragolpe de tres toques|una salida limpia desde el fondo) (terminó en|desembocó en|encontró) {scorer}, (que puso|autor del remate que puso|quien colocó) en ventaja a {club}.",
        "{rival} (quedó partido|dejó metros|se desordenó) y, en el minuto {minute}, {scorer} (supo leerlo|aceleró donde debía|explotó ese espacio) para que {club} (sacara ventaja|pasara al frente|mandara en el marcador).",
        "En el minuto {minute} (pesó|se impuso|habló) la jerarquía (individual|técnica|del definidor): {scorer} (controló orientado|enganchó hacia adentro|perfiló la zurda) y {club} (desequilibró|volvió a quedar arriba|rompió el empate).",
        "(Con el trámite equilibrado|Cuando nadie prevalecía|Sin un dominador claro), el minuto {minute} (trajo|ofreció|deparó) la (llegada|irrupción|aparición) de {scorer} (por el costado|en zona de gol|desde la segunda línea) y la (ventaja|diferencia) de {club}.",
    ),
    goal_more=(
        "A los {minute} minutos, {club} (amplió|estiró|extendió) la (ventaja|diferencia): {scorer} (explotó los espacios|coronó una circulación larga|aprovechó la espalda de los laterales) ante (un rival|una defensa|un fondo) (ya sin orden|de retroceso lento|mal parado)."
        .replace("un rival|una defensa|un fondo) (ya sin orden|de retroceso lento|mal parado", "un rival|una defensa|un fondo) (sin orden|de retroceso lento|con grietas"),
        "En el minuto {minute}, {scorer} (profundizó|agrandó|consolidó) la ventaja de {club} (con una llegada a fondo|tras un quite en la salida|luego de un centro al punto penal), (síntoma|prueba|reflejo) de (su dominio posicional|una superioridad evidente|un plan bien ejecutado).",
        "(El marcador|La cuenta|La diferencia) (creció|se estiró|aumentó) al minuto {minute}: {club} (robó arriba|filtró un pase|abrió la cancha), {rival} (llegó tarde|no ajustó las marcas|retrocedió mal) y {scorer} (no falló|definió al ras|puso la cifra).",
        "Corría el minuto {minute} y {rival}, (adelantado|lanzado|obligado a arriesgar), (dejó campo|descuidó su espalda|concedió metros): {scorer} (condujo|picó en diagonal|recibió solo) y (amplió el marcador|estiró la ventaja|aumentó) para {club}.",
        "{club} (administró|manejó|eligió) bien (los ritmos|los tiempos|las zonas) y al minuto {minute} (obtuvo|consiguió|cosechó) otro (gol|premio) (por medio de|gracias a|a través de) {scorer}, (lúcido|impecable|eficaz) en la resolución.",
        "(Otra vez la pelota parada|Otro centro mal defendido|Una nueva pérdida en la salida) (costó cara|tuvo costo|resultó letal) al minuto {minute}: {scorer} (ganó en el salto|cerró por atrás|conectó de primera) y {club} (dilató|aumentó|reforzó) la ventaja.",
    ),
    goal_less=(
        "Al minuto {minute}, {scorer} (acortó|redujo|achicó) la (distancia|diferencia|brecha) con (un remate desde afuera|una diagonal inteligente|un anticipo limpio), y {club} (volvió a tener argumentos|recuperó protagonismo|se metió otra vez en el trámite).",
        "(Los cambios|Las variantes|Los retoques) (le dieron aire|le sentaron bien|dieron profundidad) a {club}, y en el minuto {minute} {scorer} (descontó|recortó la desventaja|achicó el marcador) (con oficio|por el sector débil|tras una buena asociación).",
        "En el minuto {minute} {rival} (aflojó la marca|cedió la pelota|retrocedió de más) y {scorer} (descontó|redujo la diferencia|puso el descuento): {club}, (todavía en desventaja|aún por debajo|siempre atrás en las cifras), (ajustó el desarrollo|reabrió la discusión|sumó argumentos).",
        "Corría el minuto {minute} cuando {scorer} (recibió entre líneas|ganó por arriba|filtró su carrera) y (descontó|achicó) para {club}, (que insistía con criterio|que encontraba los caminos|sostenido en su tenencia), (sin llegar a nivelar|pero sin igualar|aunque aún abajo).",
        "(El descuento|La reducción de la brecha) (llegó|se produjo|tomó forma) a los {minute} minutos: (centro pasado|recuperación y pase|rebote corto), (mala salida|cierre tardío|duda) de {rival} y (resolución|toque|zurdazo) de {scorer} (para|en favor de) {club}.",
    ),
    goal_again=(
        "{scorer}, (de lectura superior|otra vez decisivo|siempre bien ubicado), (repitió|volvió a convertir|firmó otro tanto) en el minuto {minute} para {club}, (con idéntica receta|por el mismo sector|ante una marca que no aprendió).",
        "En el minuto {minute} (reapareció|volvió a pesar|volvió a desequilibrar) {scorer}, (dueño de los espacios|el hombre de los desmarques|inalcanzable para la zaga), y {rival} (siguió sin respuestas|no corrigió la referencia|pagó de nuevo el descuido).",
        "Al minuto {minute} (insistió|reincidió|se anotó de nuevo) {scorer}, (cuya movilidad no tuvo control|que atacó mejor que nadie los intervalos|figura del encuentro), (con un toque sutil|con un remate seco|con la cara interna) para {club}.",
        "Corría el minuto {minute} y (la historia se repitió|el desajuste fue el mismo|nadie tomó la marca): {scorer} (volvió a marcar|sumó otro gol personal|facturó de nuevo), (jerarquía|eficacia|oficio) al servicio de {club}.",
        "(Ya había avisado|Ya había convertido|Ya lo conocían) y (aun así|sin embargo|pese a ello) lo dejaron libre en el minuto {minute}: {scorer} (definió con categoría|castigó otra vez|no perdonó), para (provecho|beneficio|ganancia) de {club}.",
    ),
    short_goal=(
        "Al minuto {minute}, {scorer} (modificó el marcador|definió de primera|cerró una buena maniobra).",
        "En el minuto {minute} (convirtió|resolvió|facturó) {scorer}, (tras un desajuste|por el segundo palo|con oficio).",
        "{scorer} (anotó|definió|convirtió) en el minuto {minute}, (de contra|tras un rebote|a la carrera).",
        "Minuto {minute}: (desborde|pase filtrado|quite alto) y (gol|definición|remate) de {scorer}.",
        "(Pelota parada|Centro atrás|Contra veloz) al minuto {minute} y (acierto|toque|anticipo) de {scorer}.",
        "A los {minute} minutos, (desatención|error|hueco) y (gol|cabezazo|derechazo) de {scorer}.",
    ),
    filler=(
        "El (doble cinco|volante central|mediocentro) de {home} (ofreció relevos|tapó líneas de pase|equilibró los costados), aunque (le faltó|careció de|resignó) (juego hacia adelante|precisión en el último pase|sorpresa en la llegada)."
        .replace("(le faltó|careció de|resignó) (juego hacia adelante|precisión en el último pase|sorpresa en la llegada)", "(le faltó|perdió|resignó) (juego hacia adelante|precisión en el último pase|sorpresa al llegar)"),
        "(Los laterales|Los volantes externos|Los carrileros) de {away} (cerraron por dentro|achicaron hacia el medio|midieron cada proyección) para (proteger el carril central|evitar los mano a mano|no quedar expuestos) (en las pérdidas|ante cada pérdida|a sus espaldas).",
        "(El partido|El trámite|El desarrollo) (se jugó|transcurrió|se cocinó) (en la zona media|lejos de las áreas|en el círculo central), con (mucha fricción|imprecisiones|tenencias largas) y (pocas situaciones claras|escasa profundidad|pases laterales).",
        "{home} (tuvo la pelota|acumuló pases|manejó la tenencia) (por largos pasajes|con cierto criterio|con paciencia), pero (le costó|sufrió para|no siempre supo) (filtrar entre líneas|girar la circulación|encontrar al hombre libre)."
        .replace("le costó|sufrió para|no siempre supo", "le costó|tardó en|no siempre pudo"),
        "(El enganche|El conductor|El creativo) de {away} (se tiró atrás|bajó unos metros|retrocedió) para (recibir de frente|dar el primer pase|soltarse de la marca), y (el equipo|su equipo) (ganó claridad|mejoró la salida|respiró con la pelota).",
        "(La pelota parada|El balón detenido|Cada tiro de esquina) (fue un argumento|resultó una herramienta|apareció como recurso) (repetido|recurrente|atendible), (más por necesidad que por convicción|con marcas mixtas en las dos áreas|sobre todo al primer palo)."
        .replace("El balón detenido", "El envío aéreo").replace("Cada tiro de esquina", "El tiro de esquina")
        .replace("fue un argumento|resultó una herramienta|apareció como recurso", "fue un argumento|resultó un arma|apareció como salida").replace("repetido|recurrente|atendible", "constante|recurrente|atendible"),
        "(Desde el banco|Desde el corralito|A los gritos) (pidieron|reclamaron|ordenaron) (adelantar la línea|achicar espacios|jugar a un toque), (señal|indicio|muestra) de que (algo no funcionaba|el plan necesitaba retoques|había metros por ganar).",
        "{away} (defendió|se paró|esperó) (con dos líneas juntas|en mitad de cancha|cerca de su área), (cedió la iniciativa|eligió los momentos|resignó protagonismo) y (salió rápido|buscó la espalda|apuntó al contragolpe) (cuando pudo|tras cada robo|con criterio).",
        "(La segunda jugada|El rebote|La pelota dividida) (inclinó|ordenó|marcó) (varios pasajes|el pulso|la temperatura) del encuentro, y ahí {home} (mostró oficio|sumó hombres|estuvo atento) para (recuperar y jugar|ganar metros|sostener el ataque).",
        "(Un dato|Un detalle|Un apunte) (para el análisis|del partido|que explica mucho): (los centrales|los zagueros|los defensores) de {home} (salieron jugando|rompieron líneas con pases|condujeron hasta la mitad) (sin rifar la pelota|con notable serenidad|bajo hostigamiento).",
        "(El arquero|El guardavallas|El uno) de {away} (leyó bien|anticipó|resolvió) (los envíos profundos|el mano a mano|los centros cruzados), (lejos de su línea|con los pies|con buena ubicación), (virtud de escuela|algo poco valorado|aporte silencioso).",
        "(Faltó|Se extrañó|Escaseó) (cambio de ritmo|desequilibrio individual|presencia en el área), (porque|dado que|ya que) (los extremos|los puntas|los delanteros) (recibieron siempre de espaldas|jugaron muy abiertos|chocaron contra los relevos).",
        "(Si algo distingue|Lo que separa|Aquello que define) a (estos equipos|los planteles trabajados|los conjuntos serios) es (la jerarquía|el oficio|la lectura) para (decidir bajo exigencia|elegir cuándo acelerar|sostener una idea), y (algo de eso se vio|hubo muestras de ello|quedó a la vista).",
        "(En el uno contra uno|En los duelos|Por los costados), los extremos de {home} (ganaron más de lo que perdieron|forzaron ayudas constantes|exigieron coberturas), (aunque el centro final|si bien el último toque|pero la decisión) (no siempre acompañó|careció de destino|quedó en deuda).",
    ),
    goalless=(
        "(El cero|La ausencia de goles|El marcador en blanco) se explica por (los aciertos defensivos|la imprecisión en el último pase|el temor a la pérdida), (rasgo|denominador|factor) común de {home} y {away} (a lo largo del encuentro|durante todo el desarrollo|en cada pasaje).",
        "{home} (generó|fabricó|dispuso de) (tres situaciones|un par de llegadas|las aproximaciones) (por afuera|de pelota parada|más claras), pero (definió apurado|eligió mal|chocó con el arquero) (en el momento clave|por falta de serenidad|cuando había que pausar)."
        .replace("(tres situaciones|un par de llegadas|las aproximaciones) (por afuera|de pelota parada|más claras)", "(algunas situaciones|un par de llegadas|varias aproximaciones) (por afuera|de pelota parada|bien elaboradas)"),
        "(Los centrales|Los zagueros|Las marcas) de {away} (ganaron|despejaron|resolvieron) (casi todo por arriba|los duelos directos|cada pelota frontal), y (el rival|el dueño de casa|el adversario) (se quedó sin ideas|insistió por el mismo carril|no halló alternativas)."
        .replace("|Las marcas)", "|Los defensores)"),
        "(Hubo más orden que audacia|Sobró disciplina y faltó riesgo|Pesó más el cálculo que la inventiva): (los mediocampistas|los volantes|los creativos) (no pisaron el área|se anularon entre sí|priorizaron la cobertura) y (los arqueros apenas trabajaron|el arco quedó lejos|nadie encontró el hueco).",
        "{away} (propuso|ensayó|intentó) (salir de contra|un juego más directo|lastimar por las bandas), (pero llegó con poca gente|aunque careció de compañía|sin respaldo de los volantes), y (la zaga|el fondo|la última línea) de {home} (respondió bien|controló sin sobresaltos|estuvo firme).",
        "(La ocasión más nítida|La maniobra mejor construida|La llegada más limpia) (nació|surgió|partió) de (un cambio de frente|una pared corta|un robo en la salida), y (el palo|el arquero|un cruce providencial) (impidió|negó|evitó) (la ventaja|la apertura del marcador|el desnivel).",
        "(Cerca del área|En los metros finales|En el último tercio), (los dos equipos|ambos conjuntos|unos y otros) (perdieron claridad|decidieron mal|repitieron recursos), (déficit|carencia|limitación) que (ningún entrenador|ninguno de los técnicos|ninguna variante) (consiguió|logró|pudo) corregir.",
        "(Ninguna variante|Ningún cambio de esquema|Ningún retoque) (alteró|modificó|torció) (el libreto|la paridad|el trámite): {home} (tuvo más la pelota|manejó los tiempos|ocupó mejor el campo) y {away} (cubrió los espacios|protegió su área|administró el retroceso) con (oficio|acierto|prolijidad).",
        "(En el balance de llegadas|En la suma de situaciones|En el reparto de méritos) (no hubo|casi no se notaron|apenas se vieron) diferencias: (remates lejanos|centros sin destino|pelotas divididas), (muchos relevos|faltas tácticas|presiones a destiempo) y (poca|escasa) jerarquía en el área.",
    ),
    close_win=(
        "El {score} (premia|recompensa|respalda) la (lectura|consistencia|claridad) de {winner}, que (entendió mejor los espacios|supo cuándo acelerar|tradujo su idea en goles), y (obliga|invita|empuja) a {loser} a (revisar su retroceso|trabajar las coberturas|replantear el funcionamiento) (en la semana|puertas adentro|con frialdad).",
        "(En síntesis|Como conclusión|En el balance), {winner} se (impuso|quedó con el encuentro) por {score} (gracias a|a partir de|sobre la base de) (su eficacia en las áreas|un mediocampo superior|una mejor ocupación del campo), mientras {loser} (pagó sus desatenciones|no encontró respuestas|careció de variantes) (en los momentos clave|cuando hacía falta|bajo exigencia).",
        "Con el {score} (definitivo|consumado|en el marcador), (queda|resta|sobra) (una certeza|una enseñanza|una lectura): {winner} (manejó mejor los detalles|fue más eficiente|tuvo un plan reconocible) y {loser} (dejó demasiados espacios|defendió mal las transferencias|erró en la última decisión), (ni más ni menos|sin otra explicación|y ahí está la diferencia)."
        .replace("ni más ni menos", "así de simple").replace("las transferencias", "los costados"),
        "{winner} (ganó|venció|se impuso) por {score} (a|ante) {loser} (con argumentos|desde el juego|por oficio), (un resultado|un desenlace|un marcador) que (se ajusta a lo visto|refleja la diferencia de jerarquía|guarda lógica) (si se repasan las llegadas|más allá de los matices|en el análisis fino)."
        .replace("por {score} (a|ante) {loser}", "por {score} ante {loser}"),
        "(El análisis posterior|La revisión del video|El repaso en frío) del {score} (dirá|mostrará|confirmará) que {winner} (dominó los intervalos|aprovechó los desajustes|mandó en la segunda pelota), y que {loser} (corrió detrás del trámite|perdió las referencias|nunca ajustó las marcas) (por fuera|por dentro|en el mediocampo).",
        "(Quedó|Fue|Resultó) {score} para {winner}, (que sostuvo su idea|más maduro en las decisiones|con mejor administración de los ritmos), ante un {loser} (voluntarioso pero previsible|de buenas intenciones y poca precisión|con más tenencia que profundidad), (según indicó el desarrollo|como insinuaba el planteo|a tono con lo visto).",
        "(La ventaja final|La diferencia definitiva|El desenlace), {score} (a favor de|para) {winner}, (descansa|se apoya) en (el trabajo sin pelota|la pelota parada|el acierto de sus delanteros), (un rubro|un aspecto|un terreno) donde {loser} (mostró fragilidad|estuvo en deuda|no dio la talla) (otra vez|sin atenuantes|de punta a punta)."
        .replace("(otra vez|sin atenuantes|de punta a punta)", "(sin atenuantes|de punta a punta|en los dos arcos)"),
    ),
    close_draw=(
        "El {score} (refleja|resume|traduce) (la paridad|el equilibrio|la simetría) del encuentro: {home} (tuvo la iniciativa|mandó con la pelota|propuso más), {away} (respondió con orden|supo esperar|administró los espacios) y (ninguno sacó diferencias|la balanza no se movió|los planteos se neutralizaron).",
        "(Como conclusión|En el balance|En síntesis), {score} y (un punto para cada uno|reparto de puntos|igualdad razonable): {home} (deberá mejorar|tendrá que revisar|necesita ajustar) (la definición|su retroceso|el último pase), y {away} (se lleva certezas|rescata su orden|suma oficio) (lejos de casa|como visitante|para lo que viene).",
        "Con el {score} (definitivo|consumado|en el marcador), {home} y {away} (confirmaron|dejaron la sensación de|mostraron) (que están a la par|una paridad de recursos|virtudes y defectos similares), (tema|asunto|material) para (los cuerpos técnicos|el pizarrón|el trabajo semanal)."
        .replace("(confirmaron|dejaron la sensación de|mostraron) (que están a la par|una paridad de recursos|virtudes y defectos similares)", "(confirmaron|exhibieron|mostraron) (una paridad notable|recursos parecidos|virtudes y defectos similares), (sin jerarquías marcadas|sin un dominador|sin ventaja deportiva)"),
        "(Nadie prevaleció|No hubo vencedor|Ninguno se impuso): {score} (en el marcador|al cabo del encuentro|como cifra final), (producto|consecuencia|resultado) de (dos planteos cautos|funcionamientos gemelos|errores compartidos), con (un {home} de mayor tenencia|un {away} de mejor retroceso|méritos repartidos) y (poco más|matices apenas|detalles por pulir).",
        "(El análisis posterior|La revisión del video|El repaso en frío) del {score} (dirá|mostrará|confirmará) que {home} (acertó en la salida|controló la mitad|ganó por las bandas), que {away} (corrigió a tiempo|leyó los relevos|compensó con oficio) y que (el empate|la igualdad) (es justo|fue lo lógico|cabe en el desarrollo)."
        .replace("el empate|la igualdad) (es justo|", "el empate|repartir puntos) (era justo|"),
        "{score}, (entonces|en definitiva|al fin), (y una conclusión|con una certeza|más una lectura): (para ganar|para desnivelar|para quebrar) (estos encuentros|un trámite tan parejo|partidos así) (hace falta|se requiere|se necesita) (jerarquía en el área|mayor audacia|sorpresa desde atrás), algo que {home} y {away} (administraron con cuentagotas|mostraron a ráfagas|ofrecieron de a ratos).",
    ),
    signature=(
        "(Al final|En estas instancias|A la larga), la jerarquía (de los intérpretes|individual|en los detalles) (termina explicando|suele ordenar|acomoda) (lo que el pizarrón no alcanza|cualquier desarrollo|aquello que parece azar).",
        "(El marcador|Un encuentro|Una ventaja) (dice una parte|cuenta apenas la mitad|es solo un dato), (el funcionamiento|el trabajo semanal|la idea) (explica|completa|aclara) (todo lo demás|el resto|la otra parte).",
        "(Se fue|Concluyó|Quedó atrás) un encuentro (de trazo fino|para rever en video|de matices), (con más preguntas que respuestas|rico en detalles|útil para el análisis) (del lunes|de los entrenadores|de quien quiera aprender).",
        "(Conviene|Vale|Corresponde) (recordarlo|anotarlo|subrayarlo): (la ventaja|el marcador|un encuentro) (se construye|nace|se trabaja) (desde el orden|con la pelota y sin ella|en los espacios chicos), (nunca por casualidad|paso a paso|con ideas claras).",
        "(Los detalles|Los relevos|Los ritmos), (la pelota parada|el retroceso|la circulación) y la jerarquía: (de eso|con esos elementos|sobre tales bases) (se hace|se construye|se discute) (el fútbol de hoy|un equipo serio|cualquier proyecto).",
        "(Habrá|Queda|Sobra) (tiempo|material|tela) para (corregir|revisar|estudiar) este encuentro, (que enseñó bastante|de variada lectura|con sus luces y sombras), (lejos del ruido|con la cabeza fría|sin apuro).",
        "(Detrás|Más allá|Por encima) (del marcador|de toda ventaja|de cada encuentro) (hay|existe|subyace) (un método|una idea|un trabajo), y (eso|ese proceso) (merece|exige|pide) (paciencia|continuidad|una mirada atenta).",
        "(Hasta acá|Hasta aquí) (el repaso|el análisis|la lectura) del encuentro, (donde cada metro tuvo dueño|que se jugó también en los bancos|con aciertos y errores) (a la vista|para repartir|por corregir).",
    ),
)
