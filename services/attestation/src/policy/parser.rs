//! The grammar: tokens to rules.

use super::{
    ParseError, Policy, Version,
    lexer::{self, Kind, Token},
};

/// How deep function calls may stand in each other.
const MAX_DEPTH: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Configuration,
    Authorization,
    Issuance,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) line: usize,
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    /// Index of the variable the matching claims are bound to, among those of the rule.
    pub(super) variable: Option<usize>,
    /// Whether it holds when no claim matches.
    pub(super) negated: bool,
    pub(super) demands: Vec<Demand>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Demand {
    pub(super) property: Property,
    pub(super) operator: Operator,
    pub(super) operand: Expression,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Property {
    Type,
    Value,
    ValueType,
    Issuer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expression {
    Literal(super::Value),
    /// A property of the claims bound to a variable.
    Property {
        variable: usize,
        property: Property,
    },
    Call {
        function: Function,
        arguments: Vec<Self>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    JmesPath,
    JsonToClaimValue,
    IsSubsetOf,
    AppendString,
    NegateBool,
    ContainsOnlyValue,
}

impl Function {
    const ALL: [(&str, Self, usize); 6] = [
        ("JmesPath", Self::JmesPath, 2),
        ("JsonToClaimValue", Self::JsonToClaimValue, 1),
        ("IsSubsetOf", Self::IsSubsetOf, 2),
        ("AppendString", Self::AppendString, 2),
        ("NegateBool", Self::NegateBool, 1),
        ("ContainsOnlyValue", Self::ContainsOnlyValue, 2),
    ];

    pub(super) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, function, _)| *function == self).map_or("", |(name, ..)| name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Permit,
    Deny,
    Make { verb: Verb, claims: Made },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Issue,
    IssueProperty,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Made {
    /// The claims bound to a variable, as they are.
    Same { variable: usize },
    /// New ones.
    New { kind: Expression, value: Expression, value_type: Option<Expression>, issuer: Option<Expression> },
}

pub(super) fn parse(text: &str) -> Result<Policy, ParseError> {
    let tokens = lexer::tokens(text)?;
    let mut parser = Parser { tokens, next: 0, version: Version::V1_0, variables: Vec::new() };
    let version = parser.version()?;
    parser.version = version;
    let mut policy =
        Policy { version, configuration: Vec::new(), authorization: Vec::new(), issuance: Vec::new() };
    let mut seen = Vec::new();
    while parser.peek().kind != Kind::End {
        let section = parser.section_name(&seen)?;
        seen.push(section);
        *policy.section_mut(section) = parser.rules(section)?;
    }
    Ok(policy)
}

struct Parser {
    /// Never empty: ends with [`Kind::End`].
    tokens: Vec<Token>,
    next: usize,
    version: Version,
    /// Names bound in the rule being read.
    variables: Vec<String>,
}

impl Parser {
    fn version(&mut self) -> Result<Version, ParseError> {
        let rule = "versionInfo";
        self.keyword(rule, &["version"])?;
        self.symbol(rule, "=")?;
        let at = self.peek().clone();
        let Kind::Integer(major) = at.kind else { return Err(self.unexpected(rule, "INTEGER")) };
        self.take();
        self.symbol(rule, ".")?;
        let Kind::Integer(minor) = self.peek().kind else { return Err(self.unexpected(rule, "INTEGER")) };
        self.take();
        let version = match (major, minor) {
            (1, 0) => Version::V1_0,
            (1, 1) => Version::V1_1,
            (1, 2) => Version::V1_2,
            _ => {
                let found = format!("{major}.{minor}");
                return Err(ParseError::new(at.at, rule, found, "one of the versions 1.0, 1.1, 1.2"));
            }
        };
        self.symbol(rule, ";")?;
        Ok(version)
    }

    fn section_name(&mut self, seen: &[Section]) -> Result<Section, ParseError> {
        let mut sections = vec![
            ("authorizationrules", Section::Authorization),
            ("issuancerules", Section::Issuance),
            ("configurationrules", Section::Configuration),
        ];
        // Neither what this version does not have nor what was there already.
        sections.retain(|(_, section)| {
            !seen.contains(section) && (*section != Section::Configuration || self.version >= Version::V1_1)
        });
        let names: Vec<_> = sections.iter().map(|(name, _)| *name).collect();
        if names.is_empty() {
            return Err(self.unexpected("section", "<EOF>"));
        }
        let index = self.keyword("section", &names)?;
        Ok(sections[index].1)
    }

    fn rules(&mut self, section: Section) -> Result<Vec<Rule>, ParseError> {
        let name = match section {
            Section::Configuration => "configurationRules",
            Section::Authorization => "authorizationRules",
            Section::Issuance => "issuanceRules",
        };
        self.symbol(name, "{")?;
        let mut rules = Vec::new();
        while !self.at_symbol("}") {
            rules.push(self.rule(section)?);
        }
        self.symbol(name, "}")?;
        self.symbol(name, ";")?;
        Ok(rules)
    }

    fn rule(&mut self, section: Section) -> Result<Rule, ParseError> {
        self.variables.clear();
        let line = self.peek().at.line;
        let mut conditions = Vec::new();
        if !self.at_symbol("=>") {
            conditions.push(self.condition()?);
            while self.at_symbol("&&") {
                self.take();
                conditions.push(self.condition()?);
            }
            if !self.at_symbol("=>") {
                return Err(self.unexpected("conditionList", "'&&' or '=>'"));
            }
        }
        self.symbol("claimRule", "=>")?;
        let action = self.action(section)?;
        self.symbol("claimRule", ";")?;
        Ok(Rule { line, conditions, action })
    }

    fn condition(&mut self) -> Result<Condition, ParseError> {
        let rule = "condition";
        let mut name = None;
        if let Kind::Word(word) = &self.peek().kind {
            let word = word.clone();
            if self.variables.contains(&word) {
                return Err(self.unexpected(rule, "an identifier that this rule does not use yet"));
            }
            name = Some(word);
            self.take();
            self.symbol(rule, ":")?;
        }
        let negated = self.at_symbol("!");
        if negated {
            if self.version < Version::V1_2 {
                return Err(self.unexpected(rule, "'[' ('!' is of version 1.2)"));
            }
            self.take();
        }
        let expected = match (name.is_some(), negated) {
            (_, true) => "'['",
            (true, _) => "'[' or '!'",
            (false, _) => "'[', '!', '=>' or an identifier",
        };
        if !self.at_symbol("[") {
            return Err(self.unexpected(rule, expected));
        }
        self.take();
        let mut demands = vec![self.demand()?];
        while self.at_symbol(",") {
            self.take();
            demands.push(self.demand()?);
        }
        if !self.at_symbol("]") {
            return Err(self.unexpected(rule, "',' or ']'"));
        }
        self.take();
        // Bound only now: a condition cannot refer to the claims it is about to find.
        let variable = name.map(|name| {
            self.variables.push(name);
            self.variables.len() - 1
        });
        Ok(Condition { variable, negated, demands })
    }

    fn demand(&mut self) -> Result<Demand, ParseError> {
        let rule = "claimPropertyCondition";
        let property = self.property(rule)?;
        let at = self.peek().clone();
        let operator = match at.kind {
            // Microsoft's samples write a single '=' as well.
            Kind::Symbol("==" | "=") => Operator::Equal,
            Kind::Symbol("!=") => Operator::NotEqual,
            Kind::Symbol("<") => Operator::Less,
            Kind::Symbol("<=") => Operator::LessOrEqual,
            Kind::Symbol(">") => Operator::Greater,
            Kind::Symbol(">=") => Operator::GreaterOrEqual,
            _ => return Err(self.unexpected(rule, "'==', '!=', '<', '<=', '>' or '>='")),
        };
        let equality = matches!(operator, Operator::Equal | Operator::NotEqual);
        if !equality && property != Property::Value {
            return Err(self.unexpected(rule, "'==' or '!='"));
        }
        self.take();
        let operand_at = self.peek().clone();
        let operand = self.expression(0)?;
        if let Expression::Literal(literal) = &operand {
            let text = matches!(literal, super::Value::String(_));
            let number = matches!(literal, super::Value::Integer(_));
            if property != Property::Value && !text {
                return Err(ParseError::new(operand_at.at, rule, operand_at.source, "STRING"));
            }
            if !equality && !number {
                let expected = "INTEGER (only integers are ordered)";
                return Err(ParseError::new(operand_at.at, rule, operand_at.source, expected));
            }
        }
        Ok(Demand { property, operator, operand })
    }

    fn property(&mut self, rule: &str) -> Result<Property, ParseError> {
        let property = match &self.peek().kind {
            Kind::Word(word) => match word.as_str() {
                "type" => Some(Property::Type),
                "value" => Some(Property::Value),
                "valueType" => Some(Property::ValueType),
                "issuer" => Some(Property::Issuer),
                _ => None,
            },
            _ => None,
        };
        let property =
            property.ok_or_else(|| self.unexpected(rule, "'type', 'value', 'valueType' or 'issuer'"))?;
        self.take();
        Ok(property)
    }

    fn expression(&mut self, depth: usize) -> Result<Expression, ParseError> {
        let rule = "expression";
        let expected = if self.version >= Version::V1_2 {
            "STRING, INTEGER, 'true', 'false', a claim property or a function call"
        } else {
            "STRING, INTEGER, 'true', 'false' or a claim property"
        };
        let token = self.peek().clone();
        let word = match token.kind {
            Kind::Text(text) => {
                self.take();
                return Ok(Expression::Literal(text.into()));
            }
            Kind::Integer(number) => {
                self.take();
                return Ok(Expression::Literal(number.into()));
            }
            Kind::Word(ref word) => word.clone(),
            _ => return Err(self.unexpected(rule, expected)),
        };
        self.take();
        if self.at_symbol(".") {
            let variable = self.variable(&word, &token)?;
            self.take();
            let property = self.property(rule)?;
            return Ok(Expression::Property { variable, property });
        }
        if self.at_symbol("(") {
            return self.call(&word, &token, depth);
        }
        if word.eq_ignore_ascii_case("true") || word.eq_ignore_ascii_case("false") {
            return Ok(Expression::Literal(word.eq_ignore_ascii_case("true").into()));
        }
        if self.variables.contains(&word) {
            return Err(self.unexpected(rule, "'.' and a property of the claim"));
        }
        Err(ParseError::new(token.at, rule, token.source, expected))
    }

    fn call(&mut self, name: &str, token: &Token, depth: usize) -> Result<Expression, ParseError> {
        let rule = "functionCall";
        let error = |expected: String| ParseError::new(token.at, rule, token.source.clone(), expected);
        if self.version < Version::V1_2 {
            return Err(error("no function call (functions are of version 1.2)".into()));
        }
        let Some((_, function, arity)) = Function::ALL.into_iter().find(|(known, ..)| *known == name) else {
            let known: Vec<_> = Function::ALL.iter().map(|(known, ..)| *known).collect();
            return Err(error(format!("one of the functions {}", known.join(", "))));
        };
        if depth >= MAX_DEPTH {
            return Err(error(format!("function calls at most {MAX_DEPTH} deep")));
        }
        self.symbol(rule, "(")?;
        let mut arguments = Vec::with_capacity(arity);
        for index in 0..arity {
            if index > 0 {
                self.symbol(rule, ",")?;
            }
            arguments.push(self.expression(depth + 1)?);
        }
        self.symbol(rule, ")")?;
        Ok(Expression::Call { function, arguments })
    }

    fn action(&mut self, section: Section) -> Result<Action, ParseError> {
        let rule = "action";
        let actions: &[&str] = match section {
            Section::Configuration => &["issueproperty"],
            Section::Authorization => &["permit", "deny", "add"],
            Section::Issuance => &["issue", "add", "issueproperty"],
        };
        let index = self.keyword(rule, actions)?;
        self.symbol(rule, "(")?;
        let verb = match actions[index] {
            "permit" | "deny" => {
                self.symbol(rule, ")")?;
                return Ok(if actions[index] == "permit" { Action::Permit } else { Action::Deny });
            }
            "add" => Verb::Add,
            "issue" => Verb::Issue,
            _ => Verb::IssueProperty,
        };
        let claims = self.claim()?;
        self.symbol(rule, ")")?;
        Ok(Action::Make { verb, claims })
    }

    fn claim(&mut self) -> Result<Made, ParseError> {
        let rule = "claim";
        if matches!(&self.peek().kind, Kind::Word(word) if word == "claim") {
            self.take();
            self.symbol(rule, "=")?;
            let token = self.peek().clone();
            let Kind::Word(name) = &token.kind else { return Err(self.unexpected(rule, "an identifier")) };
            let variable = self.variable(name, &token)?;
            self.take();
            return Ok(Made::Same { variable });
        }
        let mut properties = [const { None::<Expression> }; 4];
        loop {
            let token = self.peek().clone();
            let property = self.property(rule)?;
            if properties[property as usize].is_some() {
                return Err(ParseError::new(token.at, rule, token.source, "every property once"));
            }
            self.symbol(rule, "=")?;
            properties[property as usize] = Some(self.expression(0)?);
            if !self.at_symbol(",") {
                break;
            }
            self.take();
        }
        let [kind, value, value_type, issuer] = properties;
        let kind = kind.ok_or_else(|| self.unexpected(rule, "',' and the property 'type'"))?;
        let value = value.ok_or_else(|| self.unexpected(rule, "',' and the property 'value'"))?;
        Ok(Made::New { kind, value, value_type, issuer })
    }

    fn variable(&self, name: &str, token: &Token) -> Result<usize, ParseError> {
        self.variables.iter().position(|known| known == name).ok_or_else(|| {
            let expected = match self.variables.as_slice() {
                [] => "no identifier, as no condition before it binds one".to_owned(),
                known => format!("an identifier bound by a condition before it ({})", known.join(", ")),
            };
            ParseError::new(token.at, "expression", token.source.clone(), expected)
        })
    }

    fn keyword(&mut self, rule: &str, keywords: &[&str]) -> Result<usize, ParseError> {
        if let Kind::Word(word) = &self.peek().kind
            && let Some(index) = keywords.iter().position(|keyword| word.eq_ignore_ascii_case(keyword))
        {
            self.take();
            return Ok(index);
        }
        let quoted: Vec<_> = keywords.iter().map(|keyword| format!("'{keyword}'")).collect();
        Err(self.unexpected(rule, &quoted.join(" or ")))
    }

    fn symbol(&mut self, rule: &str, symbol: &str) -> Result<(), ParseError> {
        if !self.at_symbol(symbol) {
            return Err(self.unexpected(rule, &format!("'{symbol}'")));
        }
        self.take();
        Ok(())
    }

    fn at_symbol(&self, symbol: &str) -> bool {
        matches!(self.peek().kind, Kind::Symbol(found) if found == symbol)
    }

    fn unexpected(&self, rule: &str, expected: &str) -> ParseError {
        let token = self.peek();
        ParseError::new(token.at, rule, token.source.clone(), expected)
    }

    fn peek(&self) -> &Token {
        &self.tokens[self.next]
    }

    fn take(&mut self) {
        // The end is never passed.
        self.next = (self.next + 1).min(self.tokens.len() - 1);
    }
}
