//! Azure Attestation's policy language, versions 1.0, 1.1 and 1.2.
//!
//! A policy turns the claims that evidence yields (*incoming*) into a decision and the claims a token carries besides
//! (*outgoing*). [`Policy::parse`] reads it, naming line, column and what was expected when it cannot;
//! [`Policy::configure`] tells how the evidence is to be appraised, before it is; [`Policy::evaluate`] decides.
//!
//! Policy text comes from anybody (an attest request may carry a draft): parsing and evaluation are bounded in depth,
//! work and memory, and nothing panics.
//!
//! Source of the grammar: Microsoft's pages "Claim and claim rules", "Policy version 1.0/1.1/1.2" and "Claim rule
//! functions". What they leave open is decided so:
//!
//! - A variable stands for the set of claims its condition matched. A condition `value == v.value` holds when the value
//!   is in the set, `!=` when it is not, an ordering when it holds against some element.
//! - `issue(type = …, value = v.value)` makes one claim per value of the set; an empty set makes none.
//! - Functions of a single value refuse a set of several different ones.
//! - Values of different types are unequal, and ordered in no way.
//! - An error inside a function (`JsonToClaimValue` of an object, say) fails the attestation.
//! - A rule cannot make a claim whose issuer is `AttestationService`.

mod evaluate;
mod functions;
mod lexer;
mod parser;

use std::fmt;

use serde::Serialize;
use smol_str::SmolStr;

pub use evaluate::{EvaluationError, Outcome};
pub use lexer::MAX_POLICY_LEN;
use parser::{Rule, Section};

/// A parsed policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Version of the language it is written in.
    pub version: Version,
    configuration: Vec<Rule>,
    authorization: Vec<Rule>,
    issuance: Vec<Rule>,
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// [`ParseError`] at the first place where the text is not of the language, or of a version later than it declares.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        parser::parse(text)
    }

    /// The properties that the configuration rules set, from claims known before the evidence is appraised.
    ///
    /// # Errors
    /// [`EvaluationError`] when a rule cannot be evaluated.
    pub fn configure(&self, incoming: &[Claim]) -> Result<Vec<Claim>, EvaluationError> {
        evaluate::configure(&self.configuration, incoming)
    }

    /// Decides by the authorization rules, and makes claims by the issuance rules.
    ///
    /// # Errors
    /// [`EvaluationError`] when the evidence is denied or a rule cannot be evaluated.
    pub fn evaluate(&self, incoming: Vec<Claim>) -> Result<Outcome, EvaluationError> {
        evaluate::evaluate(&self.authorization, &self.issuance, incoming)
    }

    fn section_mut(&mut self, section: Section) -> &mut Vec<Rule> {
        match section {
            Section::Configuration => &mut self.configuration,
            Section::Authorization => &mut self.authorization,
            Section::Issuance => &mut self.issuance,
        }
    }
}

/// Versions of the language.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 1.0.
    V1_0,
    /// 1.1: configuration rules.
    V1_1,
    /// 1.2: functions, and conditions that a claim be absent.
    V1_2,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1_0 => "1.0",
            Self::V1_1 => "1.1",
            Self::V1_2 => "1.2",
        })
    }
}

/// A statement about the attested environment, or one made by a policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// What it is about.
    pub kind: SmolStr,
    /// What it says.
    pub value: Value,
    /// Who says it.
    pub issuer: Issuer,
    /// Whether a policy may only compare it, not pass it on.
    pub read_only: bool,
}

impl Claim {
    /// A claim that the service found in the evidence.
    #[must_use]
    pub fn of_service(kind: impl Into<SmolStr>, value: impl Into<Value>) -> Self {
        Self { kind: kind.into(), value: value.into(), issuer: Issuer::AttestationService, read_only: false }
    }
}

/// The value of a claim. Cheap to clone: policies pass values on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// Text; JSON also is text here.
    String(SmolStr),
    /// A number.
    Integer(i64),
    /// A truth value.
    Boolean(bool),
}

impl Value {
    /// Name of the type, as `valueType` has it.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::String(_) => "String",
            Self::Integer(_) => "Integer",
            Self::Boolean(_) => "Boolean",
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::String(text) => text.len(),
            Self::Integer(_) | Self::Boolean(_) => 8,
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text.into())
    }
}

impl From<SmolStr> for Value {
    fn from(text: SmolStr) -> Self {
        Self::String(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Self::Boolean(truth)
    }
}

/// Who makes a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Issuer {
    /// The service, from the evidence.
    AttestationService,
    /// A rule of the policy.
    AttestationPolicy,
    /// The attester.
    CustomClaim,
}

impl Issuer {
    /// Name as policies write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AttestationService => "AttestationService",
            Self::AttestationPolicy => "AttestationPolicy",
            Self::CustomClaim => "CustomClaim",
        }
    }
}

/// A place in a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

/// Text is not a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "Offending symbol: '{found}' Line: '{}', Column: '{}' Failure message: 'mismatched input '{found}' expecting {expected}' \
     Failing rule: '{rule}'",
    .at.line,
    .at.column
)]
pub struct ParseError {
    /// Where.
    pub at: Position,
    /// What stands there.
    pub found: String,
    /// What could stand there.
    pub expected: String,
    /// The rule of the grammar that is not met.
    pub rule: String,
}

impl ParseError {
    fn new(at: Position, rule: &str, found: impl Into<String>, expected: impl Into<String>) -> Self {
        let rule = if rule == "policy" { rule.to_owned() } else { format!("policy > {rule}") };
        Self { at, found: found.into(), expected: expected.into(), rule }
    }
}

#[cfg(test)]
mod tests;
