// Entry point of the pages of documents and of insights into them, beside app.js. They are loaded whole: Navigation
// does not lead to them.

import { ChatDocument, ChatDocuments } from "./elements/chat_documents.js";
import { ChatInsights } from "./elements/chat_insights.js";

customElements.define("chat-documents", ChatDocuments);
customElements.define("chat-document", ChatDocument);
customElements.define("chat-insights", ChatInsights);
