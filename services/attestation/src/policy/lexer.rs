//! Splits policy text into tokens, each with its place.

use super::{ParseError, Position};

/// The longest policy read, bytes.
pub const MAX_POLICY_LEN: usize = 128 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Word(String),
    Integer(i64),
    Text(String),
    /// Punctuation and operators, as written.
    Symbol(&'static str),
    End,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) at: Position,
    /// As it stands in the text, shortened for messages.
    pub(super) source: String,
}

/// Longest first, so that `==` is not read as `=` twice.
const SYMBOLS: [&str; 21] = [
    "=>", "==", "!=", "<=", ">=", "&&", "=", "<", ">", "!", "[", "]", "{", "}", "(", ")", ",", ";", ":", ".",
    "||",
];

/// Reads all tokens; the last is [`Kind::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, ParseError> {
    if text.len() > MAX_POLICY_LEN {
        return Err(ParseError::new(
            Position { line: 1, column: 1 },
            "policy",
            format!("{} bytes", text.len()),
            format!("a policy of at most {MAX_POLICY_LEN} bytes"),
        ));
    }
    // Editors on some systems begin a file with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lexer = Lexer { rest: text, at: Position { line: 1, column: 1 } };
    let mut tokens = Vec::new();
    loop {
        let token = lexer.next()?;
        let end = token.kind == Kind::End;
        tokens.push(token);
        if end {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    rest: &'a str,
    at: Position,
}

impl Lexer<'_> {
    fn next(&mut self) -> Result<Token, ParseError> {
        self.skip_blanks();
        let at = self.at;
        let before = self.rest;
        let kind = self.kind(at)?;
        let length = before.len() - self.rest.len();
        let source = match kind {
            Kind::End => "<EOF>".to_owned(),
            _ => before[..length].chars().take(60).collect(),
        };
        Ok(Token { kind, at, source })
    }

    fn kind(&mut self, at: Position) -> Result<Kind, ParseError> {
        let Some(first) = self.rest.chars().next() else { return Ok(Kind::End) };
        if first == '"' {
            return self.text(at).map(Kind::Text);
        }
        if first.is_ascii_alphabetic() || first == '_' {
            return Ok(Kind::Word(self.take_while(|c| c.is_ascii_alphanumeric() || c == '_').to_owned()));
        }
        let negative = first == '-';
        if first.is_ascii_digit() || negative {
            if negative {
                self.advance();
            }
            let digits = self.take_while(|c| c.is_ascii_digit());
            let written = if negative { format!("-{digits}") } else { digits.to_owned() };
            return written
                .parse()
                .map(Kind::Integer)
                .map_err(|_| ParseError::new(at, "expression", written, "an integer of at most 64 bits"));
        }
        if let Some(symbol) = SYMBOLS.into_iter().find(|symbol| self.rest.starts_with(symbol)) {
            for _ in 0..symbol.len() {
                self.advance();
            }
            return Ok(Kind::Symbol(symbol));
        }
        let expected = match first {
            // What word processors make of a quotation mark; Microsoft's own samples have it.
            '\u{201c}' | '\u{201d}' | '\'' => "a string in straight double quotes (\")",
            _ => "a token of the policy language",
        };
        Err(ParseError::new(at, "token", first.to_string(), expected))
    }

    fn text(&mut self, at: Position) -> Result<String, ParseError> {
        self.advance();
        let mut text = String::new();
        loop {
            let escape_at = self.at;
            match self.advance() {
                None => return Err(ParseError::new(at, "string", "<EOF>", "'\"' that ends the string")),
                Some('"') => return Ok(text),
                Some('\\') => text.push(match self.advance() {
                    Some(same @ ('"' | '\\' | '/')) => same,
                    Some('n') => '\n',
                    Some('r') => '\r',
                    Some('t') => '\t',
                    Some('u') => self.code_point(escape_at)?,
                    other => {
                        let found = other.map_or_else(|| "<EOF>".into(), |c| format!("\\{c}"));
                        let expected = "one of \\\" \\\\ \\/ \\n \\r \\t \\uXXXX";
                        return Err(ParseError::new(escape_at, "string", found, expected));
                    }
                }),
                Some(other) => text.push(other),
            }
        }
    }

    fn code_point(&mut self, at: Position) -> Result<char, ParseError> {
        let mut digits = String::new();
        for _ in 0..4 {
            digits.extend(self.advance());
        }
        let hexadecimal = digits.len() == 4 && digits.chars().all(|c| c.is_ascii_hexdigit());
        hexadecimal
            .then(|| u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32))
            .flatten()
            .ok_or_else(|| {
                ParseError::new(
                    at,
                    "string",
                    format!("\\u{digits}"),
                    "\\u and the four digits of a character",
                )
            })
    }

    fn skip_blanks(&mut self) {
        loop {
            self.take_while(char::is_whitespace);
            if !self.rest.starts_with("//") {
                return;
            }
            self.take_while(|c| c != '\n');
        }
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &str {
        let all = self.rest;
        while self.rest.chars().next().is_some_and(&wanted) {
            self.advance();
        }
        &all[..all.len() - self.rest.len()]
    }

    fn advance(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next()?;
        self.rest = chars.as_str();
        if next == '\n' {
            self.at.line += 1;
            self.at.column = 1;
        } else {
            self.at.column += 1;
        }
        Some(next)
    }
}
