// Written by `make messages` from chatproject/locale/.
globalThis.catalog = { language: "es", plural: (n) => Number((n != 1)), messages: {} };
