//! An appliance whose PKCS#11 module goes wrong on demand; the module is `tests/shim`.

use std::path::{Path, PathBuf};

use crate::appliance::Appliance;

/// The orders of one appliance's module.
pub struct Shim {
    orders: PathBuf,
}

impl Shim {
    /// The module, next to this test's own binary.
    pub fn module() -> PathBuf {
        let test = std::env::current_exe().expect("this test");
        let deps = test.parent().and_then(Path::parent).expect("target/debug");
        let module = deps.join("examples/libpkcs11_shim.so");
        assert!(
            module.exists(),
            "{} is missing: `cargo test` builds it, or `cargo build --example pkcs11_shim`",
            module.display()
        );
        module
    }

    /// An appliance over the module, initialised, that opens its keys anew for every request and looks
    /// after its token often.
    pub fn appliance(change: impl FnOnce(&mut toml::Table)) -> (Appliance, Self) {
        let (mut appliance, shim) = Self::prepared(change);
        appliance.start();
        appliance.post("/v1/init", &serde_json::json!({})).expect_status(201);
        (appliance, shim)
    }

    /// The same, not started yet.
    pub fn prepared(change: impl FnOnce(&mut toml::Table)) -> (Appliance, Self) {
        let mut appliance = Appliance::prepared(|config| {
            config["token"]["module"] = Self::module().display().to_string().into();
            let custody = config["custody"].as_table_mut().expect("a table");
            custody.insert("canary_seconds".to_owned(), 1.into());
            custody.insert("hang_seconds".to_owned(), 2.into());
            let cache = toml::toml! { idle_seconds = 0 };
            custody.insert("cache".to_owned(), cache.into());
            change(config);
        });
        // A place of its own, which custody's sandbox lets the module at.
        let place = appliance.path("shim");
        std::fs::create_dir(&place).expect("made");
        appliance.change_config(|config| {
            let mut sandbox = toml::Table::new();
            sandbox.insert("write".to_owned(), vec![place.display().to_string()].into());
            config["custody"]
                .as_table_mut()
                .expect("a table")
                .insert("sandbox".to_owned(), sandbox.into());
        });
        let orders = place.join("orders");
        appliance.set_environment("PKCS11_SHIM", &orders.display().to_string());
        (appliance, Self { orders })
    }

    /// Has the module follow these orders from now on, and no others.
    pub fn order(&self, orders: &str) {
        let new = self.orders.with_extension("new");
        std::fs::write(&new, orders).expect("written");
        std::fs::rename(&new, &self.orders).expect("renamed");
    }

    /// Has it work again.
    pub fn lift(&self) {
        self.order("");
    }

    /// How often a function was called, of those that are counted.
    pub fn calls(&self, name: &str) -> usize {
        let calls = std::fs::read_to_string(self.orders.with_extension("calls"));
        calls.unwrap_or_default().lines().filter(|call| *call == name).count()
    }
}
