//! Tokens to a tree, by the grammar of the language's specification. Size and depth are bounded, so no later step needs to be.

use std::sync::Arc;

use crate::{
    ast::{Entry, Expr, Field, Id, Item, Kind, Literal},
    issue::{Issue, Issues},
    lexer::{self, Spanned, Token},
    macros,
};

/// An expression has at most this many characters.
pub const MAX_SIZE: usize = 100_000;
/// Trees are at most this deep, and parentheses and the like nest no deeper.
pub const MAX_DEPTH: usize = 250;

/// What can begin an expression.
const BEGIN: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";
/// Words that the language keeps for itself: no variable has such a name.
pub(crate) const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// A parsed source.
#[derive(Debug, Clone)]
pub struct Ast {
    pub source: Arc<str>,
    pub root: Expr,
    /// Where each node is, in characters.
    pub offsets: Vec<usize>,
}

pub struct Parser {
    tokens: Vec<Spanned>,
    at: usize,
    nesting: usize,
    pub(crate) offsets: Vec<usize>,
    issues: Vec<Issue>,
}

/// Parsing went as far as it could; the issue is noted.
pub struct Stop;

type Parsed<T = Expr> = Result<T, Stop>;

/// Parses a source and expands its macros.
pub fn parse(source: &str) -> Result<Ast, Issues> {
    let chars: Vec<char> = source.chars().take(MAX_SIZE + 1).collect();
    if chars.len() > MAX_SIZE {
        let message = format!("expression code point size exceeds limit: size: {}, limit {MAX_SIZE}", source.chars().count());
        return Err(Issues::new("", vec![Issue { offset: 0, message }]));
    }
    let (tokens, issues) = lexer::tokens(&chars);
    let mut p = Parser { tokens, at: 0, nesting: 0, offsets: Vec::new(), issues };
    let root = p.whole();
    match root {
        Ok(root) if p.issues.is_empty() => Ok(Ast { source: source.into(), root, offsets: p.offsets }),
        _ => Err(Issues::new(source, p.issues)),
    }
}

impl Parser {
    fn peek(&self) -> &Token {
        // The last token is the end, which is never stepped over.
        &self.tokens[self.at.min(self.tokens.len() - 1)].token
    }

    fn here(&self) -> usize {
        self.tokens[self.at.min(self.tokens.len() - 1)].offset
    }

    fn step(&mut self) -> usize {
        let offset = self.here();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        offset
    }

    fn is(&self, op: &str) -> bool {
        matches!(self.peek(), Token::Op(o) if *o == op)
    }

    fn take(&mut self, op: &str) -> Option<usize> {
        self.is(op).then(|| self.step())
    }

    pub(crate) fn fail<T>(&mut self, offset: usize, message: impl Into<String>) -> Parsed<T> {
        self.issues.push(Issue { offset, message: message.into() });
        Err(Stop)
    }

    fn unexpected<T>(&mut self, expecting: &str) -> Parsed<T> {
        let t = &self.tokens[self.at.min(self.tokens.len() - 1)];
        let (offset, message) = (t.offset, format!("Syntax error: mismatched input '{}' expecting {expecting}", t.text));
        self.fail(offset, message)
    }

    fn expect(&mut self, op: &str) -> Parsed<usize> {
        match self.take(op) {
            Some(offset) => Ok(offset),
            None => self.unexpected(&format!("'{op}'")),
        }
    }

    pub(crate) fn id(&mut self, offset: usize) -> Id {
        self.offsets.push(offset);
        self.offsets.len() - 1
    }

    pub(crate) fn node(&mut self, offset: usize, kind: Kind) -> Parsed {
        let depth = kind.depth() + 1;
        if depth > MAX_DEPTH {
            return self.fail(offset, format!("expression recursion limit exceeded: {MAX_DEPTH}"));
        }
        Ok(Expr { id: self.id(offset), depth, kind })
    }

    pub(crate) fn call(&mut self, offset: usize, function: &str, args: Vec<Expr>) -> Parsed {
        self.node(offset, Kind::Call { function: function.into(), target: None, args })
    }

    fn whole(&mut self) -> Parsed {
        let e = self.expr()?;
        if *self.peek() != Token::End {
            return self.unexpected("<EOF>");
        }
        Ok(e)
    }

    fn nested<T>(&mut self, f: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        self.nesting += 1;
        if self.nesting > MAX_DEPTH / 2 {
            let here = self.here();
            return self.fail(here, format!("expression recursion limit exceeded: {MAX_DEPTH}"));
        }
        let out = f(self);
        self.nesting -= 1;
        out
    }

    fn expr(&mut self) -> Parsed {
        self.nested(|p| {
            let condition = p.logical("||")?;
            let Some(offset) = p.take("?") else { return Ok(condition) };
            let yes = p.logical("||")?;
            p.expect(":")?;
            let no = p.expr()?;
            p.call(offset, "_?_:_", vec![condition, yes, no])
        })
    }

    /// Chains of `&&` and `||` become balanced trees: they may be long.
    fn logical(&mut self, op: &'static str) -> Parsed {
        let operand = |p: &mut Self| if op == "||" { p.logical("&&") } else { p.relation() };
        let mut operands = vec![operand(self)?];
        let mut offsets = Vec::new();
        while let Some(offset) = self.take(op) {
            offsets.push(offset);
            operands.push(operand(self)?);
        }
        let function = if op == "||" { "_||_" } else { "_&&_" };
        self.balanced(function, operands, &offsets)
    }

    fn balanced(&mut self, function: &str, mut operands: Vec<Expr>, offsets: &[usize]) -> Parsed {
        if operands.len() == 1 {
            return operands.pop().ok_or(Stop);
        }
        let middle = operands.len().div_ceil(2);
        let right = operands.split_off(middle);
        let left = self.balanced(function, operands, &offsets[..middle - 1])?;
        let right = self.balanced(function, right, &offsets[middle..])?;
        self.call(offsets[middle - 1], function, vec![left, right])
    }

    fn relation(&mut self) -> Parsed {
        let mut left = self.sum()?;
        loop {
            let function = match self.peek() {
                Token::Op("==") => "_==_",
                Token::Op("!=") => "_!=_",
                Token::Op("<") => "_<_",
                Token::Op("<=") => "_<=_",
                Token::Op(">") => "_>_",
                Token::Op(">=") => "_>=_",
                Token::Word("in") => "@in",
                _ => return Ok(left),
            };
            let offset = self.step();
            let right = self.sum()?;
            left = self.call(offset, function, vec![left, right])?;
        }
    }

    fn sum(&mut self) -> Parsed {
        let mut left = self.product()?;
        loop {
            let function = match self.peek() {
                Token::Op("+") => "_+_",
                Token::Op("-") => "_-_",
                _ => return Ok(left),
            };
            let offset = self.step();
            let right = self.product()?;
            left = self.call(offset, function, vec![left, right])?;
        }
    }

    fn product(&mut self) -> Parsed {
        let mut left = self.unary()?;
        loop {
            let function = match self.peek() {
                Token::Op("*") => "_*_",
                Token::Op("/") => "_/_",
                Token::Op("%") => "_%_",
                _ => return Ok(left),
            };
            let offset = self.step();
            let right = self.unary()?;
            left = self.call(offset, function, vec![left, right])?;
        }
    }

    fn unary(&mut self) -> Parsed {
        for (op, function) in [("!", "!_"), ("-", "-_")] {
            let Some(first) = self.take(op) else { continue };
            let mut odd = true;
            let mut last = first;
            while let Some(offset) = self.take(op) {
                odd = !odd;
                last = offset;
            }
            // The last minus before a number is the number's own.
            if op == "-" && matches!(self.peek(), Token::Int(_) | Token::Double(_)) {
                let literal = self.number(last, true)?;
                let operand = self.member(literal)?;
                return if odd { Ok(operand) } else { self.call(first, function, vec![operand]) };
            }
            let primary = self.nested(Self::primary)?;
            let operand = self.member(primary)?;
            return if odd { self.call(first, function, vec![operand]) } else { Ok(operand) };
        }
        let primary = self.primary()?;
        self.member(primary)
    }

    /// What follows a value: fields, methods, indices.
    fn member(&mut self, mut e: Expr) -> Parsed {
        loop {
            if let Some(dot) = self.take(".") {
                let optional = self.take("?").is_some();
                if !optional && !matches!(self.peek(), Token::Ident(_)) {
                    let next = &self.tokens[self.at.min(self.tokens.len() - 1)];
                    let (here, text) = (next.offset, if next.token == Token::End { "" } else { &next.text });
                    let message = format!("Syntax error: no viable alternative at input '.{text}'");
                    return self.fail(here, message);
                }
                let (field, at) = self.name()?;
                if optional {
                    let literal = self.node(at, Kind::Literal(Literal::String(field.into())))?;
                    e = self.call(dot, "_?._", vec![e, literal])?;
                } else if let Some(open) = self.take("(") {
                    let args = self.list_until(")")?;
                    e = self.method(open, e, field, args)?;
                } else {
                    e = self.node(dot, Kind::Select { operand: Box::new(e), field, test: false })?;
                }
            } else if let Some(open) = self.take("[") {
                let optional = self.take("?").is_some();
                let i = self.expr()?;
                self.expect("]")?;
                e = self.call(open, if optional { "_[?_]" } else { "_[_]" }, vec![e, i])?;
            } else if self.is("{") && e.qualified().is_some() {
                let open = self.step();
                e = self.structure(open, e)?;
            } else {
                return Ok(e);
            }
        }
    }

    fn name(&mut self) -> Parsed<(String, usize)> {
        match self.peek() {
            Token::Ident(name) => {
                let name = name.clone();
                Ok((name, self.step()))
            }
            _ => self.unexpected("IDENTIFIER"),
        }
    }

    fn method(&mut self, open: usize, target: Expr, function: String, args: Vec<Expr>) -> Parsed {
        match macros::method(&function, &target, args.len()) {
            Some(expand) => expand(self, open, target, args),
            None => self.node(open, Kind::Call { function, target: Some(Box::new(target)), args }),
        }
    }

    fn list_until(&mut self, close: &str) -> Parsed<Vec<Expr>> {
        let mut out = Vec::new();
        if self.take(close).is_some() {
            return Ok(out);
        }
        loop {
            out.push(self.expr()?);
            if self.take(",").is_none() {
                self.expect(close)?;
                return Ok(out);
            }
        }
    }

    fn primary(&mut self) -> Parsed {
        match self.peek().clone() {
            Token::Op("(") => {
                self.step();
                let e = self.expr()?;
                self.expect(")")?;
                Ok(e)
            }
            Token::Op("[") => self.list(),
            Token::Op("{") => self.map(),
            Token::Op(".") => {
                let dot = self.step();
                let (name, _) = self.name()?;
                self.ident(dot, name)
            }
            Token::Ident(name) => {
                let offset = self.step();
                self.ident(offset, name)
            }
            Token::Word(w) if w != "in" => {
                let offset = self.step();
                let literal = match w {
                    "null" => Literal::Null,
                    w => Literal::Bool(w == "true"),
                };
                self.node(offset, Kind::Literal(literal))
            }
            Token::String(s) => {
                let offset = self.step();
                self.node(offset, Kind::Literal(Literal::String(s)))
            }
            Token::Bytes(b) => {
                let offset = self.step();
                self.node(offset, Kind::Literal(Literal::Bytes(b)))
            }
            Token::Int(_) | Token::Uint(_) | Token::Double(_) => self.number(self.here(), false),
            _ => self.unexpected(BEGIN),
        }
    }

    fn ident(&mut self, offset: usize, name: String) -> Parsed {
        if let Some(open) = self.take("(") {
            let args = self.list_until(")")?;
            return match macros::function(&name, args.len()) {
                Some(expand) => expand(self, open, args),
                None => self.node(open, Kind::Call { function: name, target: None, args }),
            };
        }
        if RESERVED.contains(&name.as_str()) {
            return self.fail(offset, format!("reserved identifier: {name}"));
        }
        self.node(offset, Kind::Ident(name))
    }

    fn number(&mut self, offset: usize, negative: bool) -> Parsed {
        let token = self.peek().clone();
        self.step();
        let signed = |digits: &str| if negative { format!("-{digits}") } else { digits.to_owned() };
        let hex = |t: &str| t.strip_prefix("0x").or(t.strip_prefix("0X")).map(str::to_owned);
        let literal = match &token {
            Token::Int(t) => match hex(t) {
                Some(h) => i64::from_str_radix(&signed(&h), 16).ok(),
                None => signed(t).parse().ok(),
            }
            .map(Literal::Int)
            .ok_or("invalid int literal"),
            Token::Uint(t) => match hex(t) {
                Some(h) => u64::from_str_radix(&h, 16).ok(),
                None => t.parse().ok(),
            }
            .map(Literal::Uint)
            .ok_or("invalid uint literal"),
            Token::Double(t) => {
                signed(t).parse::<f64>().ok().filter(|d| d.is_finite()).map(Literal::Double).ok_or("invalid double literal")
            }
            _ => Err("invalid literal"),
        };
        match literal {
            Ok(literal) => self.node(offset, Kind::Literal(literal)),
            Err(why) => self.fail(offset, why),
        }
    }

    fn list(&mut self) -> Parsed {
        let open = self.step();
        let mut items = Vec::new();
        while !self.is("]") {
            let optional = self.take("?").is_some();
            items.push(Item { value: self.expr()?, optional });
            if self.take(",").is_none() {
                break;
            }
        }
        self.expect("]")?;
        self.node(open, Kind::List(items))
    }

    fn map(&mut self) -> Parsed {
        let open = self.step();
        let mut entries = Vec::new();
        while !self.is("}") {
            let optional = self.take("?").is_some();
            let key = self.expr()?;
            self.expect(":")?;
            entries.push(Entry { key, value: self.expr()?, optional });
            if self.take(",").is_none() {
                break;
            }
        }
        self.expect("}")?;
        self.node(open, Kind::Map(entries))
    }

    fn structure(&mut self, open: usize, name: Expr) -> Parsed {
        let mut fields = Vec::new();
        while !self.is("}") {
            let optional = self.take("?").is_some();
            let (field, _) = match self.peek() {
                Token::Ident(_) => self.name()?,
                _ => return self.unexpected("{'}', ',', '?', IDENTIFIER, ESC_IDENTIFIER}"),
            };
            let colon = self.expect(":")?;
            let value = self.expr()?;
            fields.push(Field { id: self.id(colon), name: field, value, optional });
            if self.take(",").is_none() {
                break;
            }
        }
        self.expect("}")?;
        // The caller has seen that it is a name.
        let name = name.qualified().unwrap_or_default();
        self.node(open, Kind::Struct { name, fields })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(source: &str) -> String {
        parse(source).unwrap_err().to_string()
    }

    #[test]
    fn errors_show_line_and_caret() {
        let expecting = BEGIN;
        for (source, want) in [
            (
                "self.a >",
                format!("ERROR: <input>:1:9: Syntax error: mismatched input '<EOF>' expecting {expecting}\n | self.a >\n | ........^"),
            ),
            (
                "\"",
                format!(
                    "ERROR: <input>:1:1: Syntax error: token recognition error at: '\"'\n | \"\n | ^\nERROR: <input>:1:2: Syntax error: mismatched input '<EOF>' expecting {expecting}\n | \"\n | .^"
                ),
            ),
            ("a &&\n b c", "ERROR: <input>:2:4: Syntax error: mismatched input 'c' expecting <EOF>\n |  b c\n | ...^".into()),
            ("for", "ERROR: <input>:1:1: reserved identifier: for\n | for\n | ^".into()),
            ("while", "ERROR: <input>:1:1: reserved identifier: while\n | while\n | ^".into()),
            ("a.", "ERROR: <input>:1:3: Syntax error: no viable alternative at input '.'\n | a.\n | ..^".into()),
            ("1.exists(2, 3)", "ERROR: <input>:1:10: argument must be a simple name\n | 1.exists(2, 3)\n | .........^".into()),
            ("has(m)", "ERROR: <input>:1:5: invalid argument to has() macro\n | has(m)\n | ....^".into()),
        ] {
            assert_eq!(error(source), want);
        }
    }

    #[test]
    fn what_is_too_deep_or_too_long_is_refused() {
        for source in [
            "(".repeat(10_000),
            "[".repeat(10_000),
            format!("a{}", ".b".repeat(40_000)),
            format!("1{}", "+1".repeat(40_000)),
            format!("a{}", "?b:c".repeat(20_000)),
            format!("{}a", "!".repeat(50_000)).replace("!!", "!("),
        ] {
            let e = error(&source);
            assert!(e.contains("limit exceeded") || e.contains("mismatched"), "{}", &e[..100.min(e.len())]);
        }
        assert!(error(&"a".repeat(MAX_SIZE + 1)).contains("size exceeds limit"));
        // Long chains of conditions are fine.
        assert!(parse(&vec!["a == 1"; 5000].join(" && ")).is_ok());
    }

    proptest! {
        #[test]
        fn no_source_breaks_the_parser(source in ".{0,200}") {
            let _ = parse(&source).map_err(|e| e.to_string());
        }

        #[test]
        fn no_tokens_break_the_parser(parts in prop::collection::vec(prop::sample::select(vec![
            "a", "b", ".", "?", "(", ")", "[", "]", "{", "}", ",", ":", "1", "2u", "1.5", "'s'", "b'x'", "-", "!", "&&", "||", "==", "in",
            "has(", ".all(x,", ".map(x,", "cel.bind(v,", "null", "true", " ", "\n", "//", "\"", "r'", "'''", "+", "*", "%"]), 0..60)) {
            let _ = parse(&parts.concat()).map_err(|e| e.to_string());
        }
    }
}
