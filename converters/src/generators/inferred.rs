//! Networks whose tensors determine only some of the constructor arguments.

use serde_json::{Map, Value};

use crate::error::{Result, config};

/// A network in a file that contains only tensors: the arguments inferred from names and shapes, and those that the
/// user must provide.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Inferred {
    /// Class of the preconditioner.
    pub class: &'static str,
    /// Arguments inferred from names and shapes; null for arguments that these do not determine.
    pub kwargs: Map<String, Value>,
    /// Arguments determined by the name of a published file.
    pub published: Option<Map<String, Value>>,
    /// Message to the user about the missing arguments.
    pub question: String,
    /// Groups of arguments of which one must be given, each with the error message if none is given.
    pub(crate) asked: Vec<(Vec<&'static str>, String)>,
}

impl Inferred {
    /// All arguments: those inferred and `given`, which take precedence.
    ///
    /// # Errors
    /// `Config` if a required argument can neither be inferred nor is given.
    pub fn completed(&self, given: &Map<String, Value>) -> Result<Map<String, Value>> {
        for (names, error) in &self.asked {
            if !names.iter().any(|name| given.contains_key(*name)) {
                return Err(config(error));
            }
        }
        let mut all = self.kwargs.clone();
        for name in self.asked.iter().flat_map(|(names, _)| names).filter(|n| !given.contains_key(**n)) {
            all.swap_remove(*name);
        }
        all.extend(given.clone());
        Ok(all)
    }
}
