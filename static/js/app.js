// What the signed-in pages run. Parts first: the app looks for them when it begins.

import { ChatApp } from "./elements/chat_app.js";
import { ChatComposer } from "./elements/chat_composer.js";
import { ChatSidebar } from "./elements/chat_sidebar.js";
import { ChatTranscript } from "./elements/chat_transcript.js";
import { closeMenus } from "./helpers/menus.js";

customElements.define("chat-sidebar", ChatSidebar);
customElements.define("chat-composer", ChatComposer);
customElements.define("chat-transcript", ChatTranscript);
customElements.define("chat-app", ChatApp);
closeMenus(document);
