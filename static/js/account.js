// Entry point of the account's pages, beside app.js.

import { PasswordField } from "./elements/password_field.js";

customElements.define("password-field", PasswordField);
