//! The functions of version 1.2, and bounds on what JMESPath may cost.

use jmespath::{
    Context, JmespathError, Rcvar, Runtime, Variable,
    ast::Ast,
    functions::{ArgumentType, CustomFunction, Signature},
};

use super::Value;

/// Longest query, bytes.
const MAX_QUERY_LEN: usize = 4096;
/// Characters of a query that may start a deeper level of its tree; the library recurses that deep.
const MAX_QUERY_LEVELS: usize = 200;
/// Longest JSON text queried, and longest result, bytes.
const MAX_JSON_LEN: usize = 256 * 1024;
/// How often a query may multiply what it selects from.
const MAX_COPIES: usize = 64;
/// Farthest element of an array a query may name.
const MAX_INDEX: i32 = 1 << 20;

/// Evaluates a JMESPath query, and writes the result as JSON.
pub(super) fn jmes_path(json: &str, query: &str) -> Result<String, String> {
    if json.is_empty() || query.is_empty() {
        return Err("JmesPath needs JSON text and a query, one of them is empty".into());
    }
    if query.len() > MAX_QUERY_LEN {
        return Err(format!(
            "the JMESPath query has {} bytes, at most {MAX_QUERY_LEN} are read",
            query.len()
        ));
    }
    if json.len() > MAX_JSON_LEN {
        return Err(format!("the JSON queried has {} bytes, at most {MAX_JSON_LEN} are read", json.len()));
    }
    let levels = query.bytes().filter(|byte| b".[({|&!<>=".contains(byte)).count();
    if levels > MAX_QUERY_LEVELS {
        return Err(format!(
            "the JMESPath query has {levels} operators, at most {MAX_QUERY_LEVELS} are read"
        ));
    }
    let document = Variable::from_json(json)
        .map_err(|error| format!("JmesPath was given text that is not JSON: {error}"))?;
    let expression = RUNTIME.with(|runtime| {
        let expression = runtime
            .compile(query)
            .map_err(|error| format!("the JMESPath query is not valid: {}", reason(&error)))?;
        let mut cost = Cost::default();
        cost.add(expression.as_ast())?;
        let result = expression
            .search(document)
            .map_err(|error| format!("the JMESPath query failed: {}", reason(&error)))?;
        Ok::<_, String>(result.to_string())
    })?;
    if expression.len() > MAX_JSON_LEN {
        return Err(format!("the result of the JMESPath query is longer than {MAX_JSON_LEN} bytes"));
    }
    Ok(expression)
}

/// The claim values that JSON text stands for: none for null, several for an array.
pub(super) fn json_to_claim_values(json: &str) -> Result<Vec<Value>, String> {
    let parsed = serde_json::from_str(json)
        .map_err(|error| format!("JsonToClaimValue was given text that is not JSON: {error}"))?;
    let primitive = |value: serde_json::Value| match value {
        serde_json::Value::Null => Ok(None),
        serde_json::Value::Bool(truth) => Ok(Some(Value::Boolean(truth))),
        serde_json::Value::String(text) => Ok(Some(text.into())),
        serde_json::Value::Number(number) => match number.as_i64().or_else(|| whole(number.as_f64()?)) {
            Some(integer) => Ok(Some(Value::Integer(integer))),
            None => {
                Err(format!("JsonToClaimValue cannot make a claim of {number}, which is no 64-bit integer"))
            }
        },
        serde_json::Value::Array(_) => {
            Err("JsonToClaimValue cannot make a claim of an array in an array".into())
        }
        serde_json::Value::Object(_) => Err("JsonToClaimValue cannot make a claim of an object".to_owned()),
    };
    let values: Result<Vec<_>, _> = match parsed {
        serde_json::Value::Array(elements) => elements.into_iter().map(primitive).collect(),
        single => primitive(single).map(|value| vec![value]),
    };
    Ok(values?.into_iter().flatten().collect())
}

/// A number without a fraction that is written with one, as JMESPath results are.
#[expect(clippy::cast_possible_truncation, reason = "checked to be exact")]
fn whole(number: f64) -> Option<i64> {
    // Beyond 2^53 a float does not say which integer it was.
    (number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0).then_some(number as i64)
}

thread_local! {
    static RUNTIME: Runtime = {
        let mut runtime = Runtime::new();
        runtime.register_builtin_functions();
        let two = |first, second| Signature::new(vec![first, second], None);
        runtime.register_function(
            "equals_ignore_case",
            Box::new(CustomFunction::new(
                two(ArgumentType::String, ArgumentType::String),
                Box::new(|arguments: &[Rcvar], _: &mut Context<'_>| {
                    let [left, right] = arguments else { return Ok(Rcvar::new(Variable::Null)) };
                    let lower = |value: &Rcvar| value.as_string().map(|text| text.to_lowercase());
                    Ok(Rcvar::new(Variable::Bool(lower(left) == lower(right))))
                }),
            )),
        );
        // The library's own may square the length of its input.
        runtime.register_function(
            "join",
            Box::new(CustomFunction::new(
                two(ArgumentType::String, ArgumentType::TypedArray(Box::new(ArgumentType::String))),
                Box::new(bounded_join),
            )),
        );
        runtime
    };
}

fn bounded_join(arguments: &[Rcvar], context: &mut Context<'_>) -> Result<Rcvar, JmespathError> {
    let [glue, parts] = arguments else { return Ok(Rcvar::new(Variable::Null)) };
    let glue = glue.as_string().map_or("", String::as_str);
    let mut joined = String::new();
    for (index, part) in parts.as_array().into_iter().flatten().enumerate() {
        if index > 0 {
            joined.push_str(glue);
        }
        joined.push_str(part.as_string().map_or("", String::as_str));
        if joined.len() > MAX_JSON_LEN {
            let reason = jmespath::ErrorReason::Parse(format!("join makes more than {MAX_JSON_LEN} bytes"));
            return Err(JmespathError::new(context.expression, context.offset, reason));
        }
    }
    Ok(Rcvar::new(Variable::String(joined)))
}

/// What an error of the library says, without the picture of the query it draws over several lines.
fn reason(error: &JmespathError) -> String {
    let text = error.reason.to_string();
    format!("{text} (line {}, column {})", error.line + 1, error.column + 1)
}

/// How much more a query may yield than it is given.
#[derive(Debug)]
struct Cost {
    copies: usize,
    joins: usize,
}

impl Default for Cost {
    fn default() -> Self {
        Self { copies: 1, joins: 0 }
    }
}

impl Cost {
    /// Adds a tree, whose depth is bounded by [`MAX_QUERY_LEVELS`].
    fn add(&mut self, ast: &Ast) -> Result<(), String> {
        match ast {
            Ast::Identity { .. } | Ast::Field { .. } | Ast::Literal { .. } => {}
            Ast::Index { idx, .. } => check_index(*idx)?,
            Ast::Slice { start, stop, step, .. } => {
                [*start, *stop, Some(*step)].into_iter().flatten().try_for_each(check_index)?;
            }
            Ast::Expref { ast: node, .. }
            | Ast::Flatten { node, .. }
            | Ast::Not { node, .. }
            | Ast::ObjectValues { node, .. } => self.add(node)?,
            Ast::Comparison { lhs, rhs, .. }
            | Ast::Projection { lhs, rhs, .. }
            | Ast::And { lhs, rhs, .. }
            | Ast::Or { lhs, rhs, .. }
            | Ast::Subexpr { lhs, rhs, .. }
            | Ast::Condition { predicate: lhs, then: rhs, .. } => {
                self.add(lhs)?;
                self.add(rhs)?;
            }
            Ast::Function { name, args, .. } => {
                if name == "join" {
                    self.joins += 1;
                }
                args.iter().try_for_each(|argument| self.add(argument))?;
            }
            Ast::MultiList { elements, .. } => {
                self.multiply(elements.len())?;
                elements.iter().try_for_each(|element| self.add(element))?;
            }
            Ast::MultiHash { elements, .. } => {
                self.multiply(elements.len())?;
                elements.iter().try_for_each(|element| self.add(&element.value))?;
            }
        }
        if self.joins > 4 {
            return Err("the JMESPath query joins more than 4 times".into());
        }
        Ok(())
    }

    fn multiply(&mut self, by: usize) -> Result<(), String> {
        self.copies = self.copies.saturating_mul(by.max(1));
        if self.copies > MAX_COPIES {
            return Err(format!("the JMESPath query may copy its input more than {MAX_COPIES} times"));
        }
        Ok(())
    }
}

fn check_index(index: i32) -> Result<(), String> {
    if !(-MAX_INDEX..=MAX_INDEX).contains(&index) {
        return Err(format!("index {index} in the JMESPath query is beyond {MAX_INDEX}"));
    }
    Ok(())
}
