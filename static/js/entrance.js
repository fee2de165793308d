// What the pages with one card run.

import { PasswordField } from "./elements/password_field.js";

customElements.define("password-field", PasswordField);
