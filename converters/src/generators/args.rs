//! Constructor arguments. Reading an argument removes it; those that remain at the end are unknown.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result, config};

/// The arguments that were not read yet.
#[derive(Debug, Clone)]
pub struct Args {
    left: Map<String, Value>,
}

impl Args {
    /// Starts with all of `arguments`.
    #[must_use]
    pub fn new(arguments: Map<String, Value>) -> Self {
        Self { left: arguments }
    }

    /// Removes arguments that are null. The originals of these classes treat None as absent.
    pub fn drop_null(&mut self) {
        self.left.retain(|_, v| !v.is_null());
    }

    /// Removes arguments that do not affect the result of a network.
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

    /// Reads a non-negative integer; `None` if it is absent.
    ///
    /// # Errors
    /// `Config` if it is not a non-negative integer.
    pub fn number(&mut self, name: &str) -> Result<Option<usize>> {
        self.take(name, "a whole number", |v| usize::try_from(v.as_u64()?).ok())
    }

    /// Reads a required non-negative integer.
    ///
    /// # Errors
    /// `Config` if it is absent or not a non-negative integer.
    pub fn required(&mut self, name: &str) -> Result<usize> {
        self.number(name)?.ok_or_else(|| missing(name))
    }

    /// Reads a boolean; `None` if it is absent.
    ///
    /// # Errors
    /// `Config` if it is neither true nor false.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>> {
        self.take(name, "true or false", Value::as_bool)
    }

    /// Reads a number; `default` if it is absent.
    ///
    /// # Errors
    /// `Config` if it is not a number.
    pub fn float(&mut self, name: &str, default: f64) -> Result<f64> {
        Ok(self.take(name, "a number", Value::as_f64)?.unwrap_or(default))
    }

    /// Reads a bound; `default` if it is absent or null. Infinity is text if it comes from a pickle; `serde_json` writes it
    /// as null.
    ///
    /// # Errors
    /// `Config` if it is neither a number, nor infinity, nor null.
    pub fn bound(&mut self, name: &str, default: f64) -> Result<f64> {
        let read = |v: &Value| match v.as_str() {
            Some("inf") => Some(Some(f64::INFINITY)),
            Some("-inf") => Some(Some(f64::NEG_INFINITY)),
            _ if v.is_null() => Some(None),
            _ => v.as_f64().map(Some),
        };
        Ok(self.take(name, "a number", read)?.flatten().unwrap_or(default))
    }

    /// Reads a text; `None` if it is absent.
    ///
    /// # Errors
    /// `Config` if it is not a text.
    pub fn text(&mut self, name: &str) -> Result<Option<String>> {
        self.take(name, "a string", |v| v.as_str().map(str::to_owned))
    }

    /// Reads a required value of type `T`.
    ///
    /// # Errors
    /// `Config` if it is absent or of another type.
    pub fn parsed<T: DeserializeOwned>(&mut self, name: &str) -> Result<T> {
        let value = self.left.remove(name).ok_or_else(|| missing(name))?;
        serde_json::from_value(value).map_err(|e| config(format!("`{name}`: {e}")))
    }

    /// Reads all remaining arguments as those of `class`.
    ///
    /// # Errors
    /// `Config` if one is unknown or of another type.
    pub fn rest<T: DeserializeOwned>(self, class: &str) -> Result<T> {
        serde_json::from_value(Value::Object(self.left)).map_err(|e| config(format!("arguments of `{class}`: {e}")))
    }
}

/// The error for a missing required argument.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_may_be_infinite() {
        let values = [serde_json::json!("inf"), serde_json::json!("-inf"), Value::Null, serde_json::json!(2)];
        let found = values.map(|value| {
            let mut args = Args::new(serde_json::Map::from_iter([("sigma_max".to_owned(), value)]));
            args.bound("sigma_max", 80.0).unwrap()
        });
        assert_eq!(found, [f64::INFINITY, f64::NEG_INFINITY, 80.0, 2.0]);
        let mut args = Args::new(serde_json::Map::from_iter([("sigma_max".to_owned(), serde_json::json!("large"))]));
        assert!(args.bound("sigma_max", 80.0).is_err());
    }
}
