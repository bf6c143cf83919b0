//! Rules applied to claims.

use std::collections::BTreeSet;

use smol_str::SmolStr;

use super::{
    Claim, Issuer, Value, functions,
    parser::{Action, Condition, Demand, Expression, Function, Made, Operator, Property, Rule, Verb},
};

/// Claims a policy may make. More is a mistake or an attack.
const MAX_CLAIMS: usize = 4096;
/// Bytes of all values a policy may make.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Comparisons and function calls a policy may cost.
const MAX_STEPS: usize = 2_000_000;

/// What a policy that permits makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Claims for the token, in the order they were issued.
    pub issued: Vec<Claim>,
    /// Properties of the token.
    pub properties: Vec<Claim>,
}

/// Why a policy gives no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvaluationError {
    /// A rule denies, or none permits.
    #[error("A Deny claim was issued, authorization failed. ({})", match line {
        Some(line) => format!("denied by the rule on line {line} of the policy"),
        None => "no authorization rule permits; see what the evidence claims".to_owned(),
    })]
    Denied {
        /// Line of the rule that denies; `None` when no rule permits.
        line: Option<usize>,
    },
    /// A rule cannot be evaluated.
    #[error("the rule on line {line} of the policy cannot be evaluated: {reason}")]
    Rule {
        /// Line of the rule.
        line: usize,
        /// Why.
        reason: String,
    },
    /// A claim of the service would get another value.
    #[error("the policy issues claim {0:?}, which only the service makes; issue it under another name")]
    Reserved(String),
}

pub(super) fn configure(rules: &[Rule], incoming: &[Claim]) -> Result<Vec<Claim>, EvaluationError> {
    if rules.is_empty() {
        return Ok(Vec::new());
    }
    let mut evaluation = Evaluation::new(incoming.to_vec());
    for rule in rules {
        evaluation.apply(rule)?;
    }
    Ok(evaluation.properties)
}

pub(super) fn evaluate(
    authorization: &[Rule],
    issuance: &[Rule],
    incoming: Vec<Claim>,
) -> Result<Outcome, EvaluationError> {
    let mut evaluation = Evaluation::new(incoming);
    let mut permitted = false;
    for rule in authorization {
        match evaluation.apply(rule)? {
            Decision::None => {}
            Decision::Permit => permitted = true,
            Decision::Deny => return Err(EvaluationError::Denied { line: Some(rule.line) }),
        }
    }
    if !permitted {
        return Err(EvaluationError::Denied { line: None });
    }
    for rule in issuance {
        evaluation.apply(rule)?;
    }
    Ok(Outcome { issued: evaluation.issued, properties: evaluation.properties })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    None,
    Permit,
    Deny,
}

/// The sets of claims while rules are applied.
struct Evaluation {
    incoming: Vec<Claim>,
    issued: Vec<Claim>,
    properties: Vec<Claim>,
    made: usize,
    bytes: usize,
    steps: usize,
}

/// The values of a set of claims, without repetition. Nearly all have one.
enum Values {
    One(Value),
    Several(BTreeSet<Value>),
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Several(values) => values.len(),
        }
    }

    fn contains(&self, value: &Value) -> bool {
        match self {
            Self::One(one) => one == value,
            Self::Several(values) => values.contains(value),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Value> {
        let (one, several) = match self {
            Self::One(value) => (Some(value), None),
            Self::Several(values) => (None, Some(values)),
        };
        one.into_iter().chain(several.into_iter().flatten())
    }
}

impl FromIterator<Value> for Values {
    fn from_iter<I: IntoIterator<Item = Value>>(values: I) -> Self {
        let mut values = values.into_iter();
        match (values.next(), values.next()) {
            (Some(one), None) => Self::One(one),
            (first, second) => Self::Several(first.into_iter().chain(second).chain(values).collect()),
        }
    }
}

/// Where in the incoming claims those are that a condition matched: claims are added there, and none is ever taken away.
type Matching = Vec<usize>;

/// What an expression stands for.
struct Evaluated {
    values: Values,
    /// Whether it comes from a claim that may not be passed on.
    read_only: bool,
}

impl Evaluated {
    fn of(value: impl Into<Value>) -> Self {
        Self { values: Values::One(value.into()), read_only: false }
    }

    /// The one value, if it is one.
    fn single(&self, what: &str) -> Result<&Value, String> {
        match (self.values.iter().next(), self.values.len()) {
            (Some(value), 1) => Ok(value),
            (_, count) => Err(format!("{what} takes a single value, it is given {count}")),
        }
    }

    fn text(&self, what: &str) -> Result<&SmolStr, String> {
        match self.single(what)? {
            Value::String(text) => Ok(text),
            other => Err(format!("{what} takes a String, it is given the {} {other:?}", other.type_name())),
        }
    }
}

impl Evaluation {
    fn new(incoming: Vec<Claim>) -> Self {
        Self { incoming, issued: Vec::new(), properties: Vec::new(), made: 0, bytes: 0, steps: 0 }
    }

    fn apply(&mut self, rule: &Rule) -> Result<Decision, EvaluationError> {
        self.try_apply(rule).map_err(|reason| EvaluationError::Rule { line: rule.line, reason })
    }

    fn try_apply(&mut self, rule: &Rule) -> Result<Decision, String> {
        // Variables are numbered in the order of the conditions that bind them.
        let mut bound: Vec<Matching> = Vec::new();
        for condition in &rule.conditions {
            let matching = self.matching(condition, &bound)?;
            if matching.is_empty() != condition.negated {
                return Ok(Decision::None);
            }
            if condition.variable.is_some() {
                bound.push(matching);
            }
        }
        match &rule.action {
            Action::Permit => return Ok(Decision::Permit),
            Action::Deny => return Ok(Decision::Deny),
            Action::Make { verb, claims } => {
                for claim in self.made(claims, &bound)? {
                    self.keep(*verb, claim)?;
                }
            }
        }
        Ok(Decision::None)
    }

    fn matching(&mut self, condition: &Condition, bound: &[Matching]) -> Result<Matching, String> {
        let operands: Vec<_> = condition
            .demands
            .iter()
            .map(|demand| match &demand.operand {
                Expression::Literal(value) => Ok(Operand::Literal(value)),
                expression => self.evaluate(expression, bound).map(|found| Operand::Set(found.values)),
            })
            .collect::<Result<_, _>>()?;
        let mut matching = Matching::new();
        for index in 0..self.incoming.len() {
            let mut meets_all = true;
            for (demand, operand) in condition.demands.iter().zip(&operands) {
                self.spend(1 + operand.len() / 16)?;
                if !meets(&self.incoming[index], demand, operand) {
                    meets_all = false;
                    break;
                }
            }
            if meets_all {
                matching.push(index);
            }
        }
        Ok(matching)
    }

    fn made(&mut self, made: &Made, bound: &[Matching]) -> Result<Vec<Claim>, String> {
        let (kind, value, value_type, issuer) = match made {
            Made::Same { variable } => return Ok(self.claims(&bound[*variable]).cloned().collect()),
            Made::New { kind, value, value_type, issuer } => (kind, value, value_type, issuer),
        };
        let kind = self.evaluate(kind, bound)?;
        let kind_text = kind.text("the type of a claim")?.clone();
        let values = self.evaluate(value, bound)?;
        let value_type =
            value_type.as_ref().map(|expression| self.evaluate(expression, bound)).transpose()?;
        let issuer = match issuer {
            None => Issuer::AttestationPolicy,
            Some(expression) => {
                match self.evaluate(expression, bound)?.text("the issuer of a claim")?.as_str() {
                    "AttestationPolicy" => Issuer::AttestationPolicy,
                    "CustomClaim" => Issuer::CustomClaim,
                    other => {
                        return Err(format!(
                            "a policy makes claims of issuer AttestationPolicy or CustomClaim, not {other:?}"
                        ));
                    }
                }
            }
        };
        if let Some(value_type) = &value_type {
            let wanted = value_type.text("the valueType of a claim")?;
            if let Some(other) = values.values.iter().find(|value| value.type_name() != wanted) {
                let found = other.type_name();
                return Err(format!(
                    "claim {kind_text:?} is to be of valueType {wanted}, its value is of type {found}"
                ));
            }
        }
        let read_only = kind.read_only || values.read_only;
        let claim =
            |value: &Value| Claim { kind: kind_text.clone(), value: value.clone(), issuer, read_only };
        Ok(values.values.iter().map(claim).collect())
    }

    fn claims<'a>(&'a self, matching: &'a Matching) -> impl Iterator<Item = &'a Claim> {
        matching.iter().map(|index| &self.incoming[*index])
    }

    fn keep(&mut self, verb: Verb, claim: Claim) -> Result<(), String> {
        self.made += 1;
        self.bytes += claim.kind.len() + claim.value.len();
        if self.made > MAX_CLAIMS || self.bytes > MAX_BYTES {
            return Err(format!(
                "the policy makes more than {MAX_CLAIMS} claims or {MAX_BYTES} bytes of them"
            ));
        }
        let outgoing = match verb {
            Verb::Add => None,
            Verb::Issue => Some(&mut self.issued),
            Verb::IssueProperty => Some(&mut self.properties),
        };
        if let Some(outgoing) = outgoing {
            if claim.read_only {
                return Err(format!(
                    "claim {:?} is, or comes from, a read-only claim and cannot be issued",
                    claim.kind
                ));
            }
            // Sets: what is there already is not there twice.
            if !outgoing.iter().any(|known| known.kind == claim.kind && known.value == claim.value) {
                outgoing.push(claim.clone());
            }
        }
        if !self.incoming.contains(&claim) {
            self.incoming.push(claim);
        }
        let total = self.incoming.len();
        self.spend(total / 16)
    }

    /// Evaluates an expression, whose depth the parser has bounded.
    fn evaluate(&mut self, expression: &Expression, bound: &[Matching]) -> Result<Evaluated, String> {
        match expression {
            Expression::Literal(value) => Ok(Evaluated::of(value.clone())),
            Expression::Property { variable, property } => {
                let claims = || self.claims(&bound[*variable]);
                let values = claims().map(|claim| property_of(claim, *property)).collect();
                // What a claim is called and who made it is no secret.
                let read_only = *property == Property::Value && claims().any(|claim| claim.read_only);
                self.spend(bound[*variable].len())?;
                Ok(Evaluated { values, read_only })
            }
            Expression::Call { function, arguments } => {
                let arguments: Vec<_> = arguments
                    .iter()
                    .map(|argument| self.evaluate(argument, bound))
                    .collect::<Result<_, _>>()?;
                self.spend(1)?;
                self.call(*function, &arguments)
            }
        }
    }

    fn call(&mut self, function: Function, arguments: &[Evaluated]) -> Result<Evaluated, String> {
        let name = function.name();
        let read_only = arguments.iter().any(|argument| argument.read_only);
        match (function, arguments) {
            (Function::JmesPath, [json, query]) => {
                let (json, query) = (json.text(name)?, query.text(name)?);
                // The dearest function: counted by what it may cost.
                self.spend(1000 + json.len())?;
                let result = functions::jmes_path(json, query)?;
                self.spend(result.len())?;
                Ok(Evaluated { read_only, ..Evaluated::of(result) })
            }
            (Function::JsonToClaimValue, [json]) => {
                let json = json.text(name)?;
                self.spend(json.len() / 16)?;
                let values = functions::json_to_claim_values(json)?.into_iter().collect();
                Ok(Evaluated { values, read_only })
            }
            (Function::IsSubsetOf, [subset, superset]) => {
                self.spend(subset.values.len())?;
                Ok(Evaluated::of(subset.values.iter().all(|value| superset.values.contains(value))))
            }
            (Function::AppendString, [left, right]) => {
                let text = [left.text(name)?.as_str(), right.text(name)?].concat();
                if text.len() > MAX_BYTES / 8 {
                    return Err(format!("{name} makes more than {} bytes", MAX_BYTES / 8));
                }
                self.spend(text.len() / 16)?;
                Ok(Evaluated { read_only, ..Evaluated::of(text) })
            }
            (Function::NegateBool, [truth]) => match truth.single(name)? {
                Value::Boolean(truth) => Ok(Evaluated { read_only, ..Evaluated::of(!truth) }),
                other => {
                    Err(format!("{name} takes a Boolean, it is given the {} {other:?}", other.type_name()))
                }
            },
            (Function::ContainsOnlyValue, [set, value]) => {
                let value = value.single("the second argument of ContainsOnlyValue")?;
                Ok(Evaluated::of(set.values.len() == 1 && set.values.contains(value)))
            }
            // The parser counts arguments.
            (_, arguments) => Err(format!("{name} does not take {} arguments", arguments.len())),
        }
    }

    fn spend(&mut self, steps: usize) -> Result<(), String> {
        self.steps = self.steps.saturating_add(steps);
        if self.steps > MAX_STEPS {
            return Err(format!("the policy takes more than {MAX_STEPS} steps"));
        }
        Ok(())
    }
}

fn property_of(claim: &Claim, property: Property) -> Value {
    match property {
        Property::Type => claim.kind.clone().into(),
        Property::Value => claim.value.clone(),
        Property::ValueType => claim.value.type_name().into(),
        Property::Issuer => claim.issuer.name().into(),
    }
}

/// What a demand compares with. Literals are compared where they stand: nearly all demands of nearly all policies have one.
enum Operand<'a> {
    Literal(&'a Value),
    Set(Values),
}

impl Operand<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Literal(_) => 1,
            Self::Set(values) => values.len(),
        }
    }

    fn contains(&self, found: &Found<'_>) -> bool {
        match (self, found) {
            (Self::Literal(Value::String(literal)), Found::Text(text)) => literal == text,
            (Self::Literal(_), Found::Text(_)) => false,
            (Self::Literal(literal), Found::Value(value)) => literal == value,
            (Self::Set(values), Found::Text(text)) => values.contains(&Value::from(*text)),
            (Self::Set(values), Found::Value(value)) => values.contains(value),
        }
    }

    fn any(&self, holds: impl Fn(&Value) -> bool) -> bool {
        match self {
            Self::Literal(value) => holds(value),
            Self::Set(values) => values.iter().any(holds),
        }
    }
}

/// A property of a claim, where it lies.
enum Found<'a> {
    Text(&'a str),
    Value(&'a Value),
}

fn meets(claim: &Claim, demand: &Demand, operand: &Operand<'_>) -> bool {
    let found = match demand.property {
        Property::Type => Found::Text(&claim.kind),
        Property::Value => Found::Value(&claim.value),
        Property::ValueType => Found::Text(claim.value.type_name()),
        Property::Issuer => Found::Text(claim.issuer.name()),
    };
    let ordered = |holds: fn(i64, i64) -> bool| {
        operand.any(|operand| match (&found, operand) {
            (Found::Value(Value::Integer(found)), Value::Integer(operand)) => holds(*found, *operand),
            _ => false,
        })
    };
    match demand.operator {
        Operator::Equal => operand.contains(&found),
        Operator::NotEqual => !operand.contains(&found),
        Operator::Less => ordered(|found, operand| found < operand),
        Operator::LessOrEqual => ordered(|found, operand| found <= operand),
        Operator::Greater => ordered(|found, operand| found > operand),
        Operator::GreaterOrEqual => ordered(|found, operand| found >= operand),
    }
}
