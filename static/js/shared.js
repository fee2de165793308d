// Entry point of the page of a chat that another user shares, beside app.js. It is loaded whole: Navigation does not
// lead to it.

import { ChatShared } from "./elements/chat_shared.js";

await customElements.whenDefined("chat-app"); // whose connection it uses
customElements.define("chat-shared", ChatShared);
