// Entry point of the pages with one card: sign-in, account, errors.

import { PasswordField } from "./elements/password_field.js";
import { WaitLink } from "./elements/wait_link.js";

customElements.define("password-field", PasswordField);
customElements.define("wait-link", WaitLink);
