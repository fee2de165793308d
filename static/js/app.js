// Entry point of the signed-in pages. chat-app is defined last: it looks up the other elements.

import { ChatApp } from "./elements/chat_app.js";
import { ChatComposer } from "./elements/chat_composer.js";
import { ChatKeys } from "./elements/chat_keys.js";
import { ChatList } from "./elements/chat_list.js";
import { ChatModels } from "./elements/chat_models.js";
import { ChatPalette } from "./elements/chat_palette.js";
import { ChatRowMenu } from "./elements/chat_row_menu.js";
import { ChatSearch } from "./elements/chat_search.js";
import { ChatSidebar } from "./elements/chat_sidebar.js";
import { ChatSettings } from "./elements/chat_settings.js";
import { PageDialog } from "./elements/page_dialog.js";
import { ReplyRating } from "./elements/reply_rating.js";
import { ChatReady, ChatTransfer } from "./elements/chat_transfer.js";
import { ChatTranscript } from "./elements/chat_transcript.js";
import { ConnectionNotice } from "./elements/connection_notice.js";
import { closeMenus } from "./helpers/menus.js";
import { keepServiceWorker } from "./helpers/service_worker.js";

customElements.define("chat-sidebar", ChatSidebar);
customElements.define("chat-search", ChatSearch);
customElements.define("chat-row-menu", ChatRowMenu);
customElements.define("chat-list", ChatList);
customElements.define("chat-settings", ChatSettings);
customElements.define("chat-models", ChatModels);
customElements.define("chat-composer", ChatComposer);
customElements.define("chat-transcript", ChatTranscript);
customElements.define("connection-notice", ConnectionNotice);
customElements.define("chat-app", ChatApp);
customElements.define("page-dialog", PageDialog);
customElements.define("reply-rating", ReplyRating);
customElements.define("chat-transfer", ChatTransfer);
customElements.define("chat-ready", ChatReady);
customElements.define("chat-palette", ChatPalette);
customElements.define("chat-keys", ChatKeys);
closeMenus(document);
keepServiceWorker().catch((error) => console.warn("no service worker:", error));
