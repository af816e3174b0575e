//! What is said of each of several things.

use crate::convert::required;
use crate::v1;
use kiln_types::{Attr, Code, Error, Result};

impl From<&Error> for v1::Failure {
    fn from(error: &Error) -> Self {
        let (code, hint) = (error.code() as u16, error.hint().map(str::to_string));
        Self { code: code.into(), message: error.message().to_string(), hint }
    }
}

impl From<v1::Failure> for Error {
    fn from(failure: v1::Failure) -> Self {
        let code = u16::try_from(failure.code).map_or(Code::Internal, Code::from_number);
        let error = Self::new(code, failure.message);
        match failure.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

impl From<Result<Attr>> for v1::AttrResult {
    fn from(result: Result<Attr>) -> Self {
        match result {
            Ok(attr) => Self { attr: Some((&attr).into()), failure: None },
            Err(error) => Self { attr: None, failure: Some((&error).into()) },
        }
    }
}

impl v1::AttrResults {
    /// What was said of `count` things.
    ///
    /// # Errors
    /// `Invalid` when it is another number of them.
    pub fn of(self, count: usize) -> Result<Vec<Result<Attr>>> {
        let results = self.results;
        check_count(results.len(), count)?;
        let one = |result: v1::AttrResult| match result.failure {
            Some(failure) => Err(failure.into()),
            None => required(result.attr, "attr"),
        };
        Ok(results.into_iter().map(one).collect())
    }
}

/// Refuses a reply that tells of another number of things than it was asked about.
///
/// # Errors
/// `Invalid`.
pub fn check_count(told: usize, asked: usize) -> Result<()> {
    if told == asked {
        return Ok(());
    }
    Err(Error::invalid(format!("a reply about {told} things to a request about {asked}")))
}
