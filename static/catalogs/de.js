// Written by `make messages` from chatproject/locale/.
globalThis.catalog = { language: "de", plural: (n) => Number((n != 1)), messages: {} };
