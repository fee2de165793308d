// Written by `make messages` from chatproject/locale/.
globalThis.catalog = { language: "ar", plural: (n) => Number((n == 0 ? 0 : n == 1 ? 1 : n == 2 ? 2 : n % 100 >= 3 && n % 100 <= 10 ? 3 : n % 100 >= 11 && n % 100 <= 99 ? 4 : 5)), messages: {} };
