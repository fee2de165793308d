// Written by `make messages` from chatproject/locale/.
globalThis.catalog = { language: "es", plural: (n) => Number((n != 1)), messages: {
"<{amount}": "<{amount}",
"A reply is still being written. Wait for it, or stop it first.": "Todavía se está escribiendo una respuesta. Espérala o detenla primero.",
"Back to the text of footnote {label}": "Volver al texto de la nota {label}",
"Copied": "Copiado",
"Footnote {label}": "Nota {label}",
"Hide": "Ocultar",
"New chat": "Chat nuevo",
"None chosen": "Ninguno elegido",
"Preview": "Vista previa",
"Queued behind your other replies": "En cola detrás de tus otras respuestas",
"Queued behind your other replies, {count} message ahead": [
"En cola detrás de tus otras respuestas, {count} mensaje delante",
"En cola detrás de tus otras respuestas, {count} mensajes delante"
],
"Queued, {place}": "En cola, {place}",
"Reading your message…": "Leyendo tu mensaje…",
"Reply failed. {reason}": "La respuesta falló. {reason}",
"Reply finished": "Respuesta terminada",
"Reply interrupted. Resuming…": "Respuesta interrumpida. Reanudando…",
"Reply stopped": "Respuesta detenida",
"Show": "Mostrar",
"Show image from {host}": "Mostrar la imagen de {host}",
"Starting…": "Empezando…",
"The browser blocked copying. Select the text and copy it by hand.": "El navegador bloqueó la copia. Selecciona el texto y cópialo a mano.",
"The message is {count} character too long. Shorten it or send it in parts.": [
"Al mensaje le sobra {count} carácter. Acórtalo o envíalo por partes.",
"Al mensaje le sobran {count} caracteres. Acórtalo o envíalo por partes."
],
"The model is busy: {place}": "El modelo está ocupado: {place}",
"The passkey was not used. Try again.": "No se ha usado la llave de acceso. Inténtalo de nuevo.",
"The site could not be reached. Check your connection and try again.": "No se ha podido contactar con el sitio. Comprueba tu conexión e inténtalo de nuevo.",
"This browser has no passkeys on this site.": "Este navegador no admite llaves de acceso en este sitio.",
"This device already has a passkey of your account.": "Este dispositivo ya tiene una llave de acceso de tu cuenta.",
"Try again": "Intentar de nuevo",
"Try again in {count} min": "Intentar de nuevo en {count} min",
"Try again in {count} s": "Intentar de nuevo en {count} s",
"You are offline. Your text is saved here. Send it when you are back online.": "Estás sin conexión. Tu texto está guardado aquí. Envíalo cuando vuelvas a estar en línea.",
"about {count} min": "unos {count} min",
"about {count} s": "unos {count} s",
"next in line": "el siguiente en la cola",
"{amount} credits available": "{amount} créditos disponibles",
"{count} character left": [
"queda {count} carácter",
"quedan {count} caracteres"
],
"{count} character over the limit": [
"{count} carácter por encima del límite",
"{count} caracteres por encima del límite"
],
"{count} chosen on this page": [
"{count} elegido en esta página",
"{count} elegidos en esta página"
],
"{count} earlier message loaded": [
"{count} mensaje anterior cargado",
"{count} mensajes anteriores cargados"
],
"{count} file": [
"{count} archivo",
"{count} archivos"
],
"{n}nd": "{n}.º",
"{n}rd": "{n}.º",
"{n}st": "{n}.º",
"{n}th": "{n}.º",
"{ordinal} in line": "{ordinal} en la cola",
"{place}, {time}": "{place}, {time}"
} };
