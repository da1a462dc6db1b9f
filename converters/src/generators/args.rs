//! A constructor's arguments, taken one by one: those that are left at the end are unknown.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result, config};

/// The arguments that were not taken yet.
#[derive(Debug, Clone)]
pub struct Args {
    left: Map<String, Value>,
}

impl Args {
    /// All of `arguments`.
    #[must_use]
    pub fn new(arguments: Map<String, Value>) -> Self {
        Self { left: arguments }
    }

    /// Drops arguments that are null, where the original treats None as absent.
    pub fn drop_null(&mut self) {
        self.left.retain(|_, v| !v.is_null());
    }

    /// Drops arguments that do not change what a network computes.
    pub fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.left.remove(*name);
        }
    }

    /// Whether `name` is given.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.left.contains_key(name)
    }

    fn take<T>(&mut self, name: &str, kind: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let found = self.left.remove(name);
        found.map(|v| read(&v).ok_or_else(|| config(format!("`{name}`: expected {kind}, found {v}")))).transpose()
    }

    /// A count.
    ///
    /// # Errors
    /// `Config` if it is not a whole number.
    pub fn number(&mut self, name: &str) -> Result<Option<usize>> {
        self.take(name, "a whole number", |v| usize::try_from(v.as_u64()?).ok())
    }

    /// A count that has no default.
    ///
    /// # Errors
    /// `Config` if it is absent or not a whole number.
    pub fn required(&mut self, name: &str) -> Result<usize> {
        self.number(name)?.ok_or_else(|| missing(name))
    }

    /// A flag.
    ///
    /// # Errors
    /// `Config` if it is neither true nor false.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>> {
        self.take(name, "true or false", Value::as_bool)
    }

    /// A number.
    ///
    /// # Errors
    /// `Config` if it is not one.
    pub fn float(&mut self, name: &str, default: f64) -> Result<f64> {
        Ok(self.take(name, "a number", Value::as_f64)?.unwrap_or(default))
    }

    /// A bound; null, as which an infinite number is read, gives `default`.
    ///
    /// # Errors
    /// `Config` if it is neither a number nor null.
    pub fn bound(&mut self, name: &str, default: f64) -> Result<f64> {
        let read = |v: &Value| if v.is_null() { Some(None) } else { v.as_f64().map(Some) };
        Ok(self.take(name, "a number", read)?.flatten().unwrap_or(default))
    }

    /// A text.
    ///
    /// # Errors
    /// `Config` if it is not one.
    pub fn text(&mut self, name: &str) -> Result<Option<String>> {
        self.take(name, "a string", |v| v.as_str().map(str::to_owned))
    }

    /// A value of type `T`.
    ///
    /// # Errors
    /// `Config` if it is absent or of another type.
    pub fn parsed<T: DeserializeOwned>(&mut self, name: &str) -> Result<T> {
        let value = self.left.remove(name).ok_or_else(|| missing(name))?;
        serde_json::from_value(value).map_err(|e| config(format!("`{name}`: {e}")))
    }

    /// The arguments that are left, as those of `class`.
    ///
    /// # Errors
    /// `Config` if one is unknown or of another type.
    pub fn rest<T: DeserializeOwned>(self, class: &str) -> Result<T> {
        serde_json::from_value(Value::Object(self.left)).map_err(|e| config(format!("arguments of `{class}`: {e}")))
    }
}

/// The error of an argument that has no default.
pub(crate) fn missing(name: &str) -> Error {
    config(format!("`{name}` is missing"))
}

/// Checks that `low <= value <= high`.
pub(crate) fn within(name: &str, value: usize, low: usize, high: usize) -> Result<()> {
    if (low..=high).contains(&value) {
        Ok(())
    } else {
        Err(config(format!("`{name}`: expected {low} to {high}, found {value}")))
    }
}
