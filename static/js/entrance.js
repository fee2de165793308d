// Entry point of the pages with one card: sign-in, account, errors.

import { PasswordField } from "./elements/password_field.js";

customElements.define("password-field", PasswordField);
