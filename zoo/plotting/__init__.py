"""Pictures of runs: the plots (`runs`) and the HTML page around them (`page`)."""
