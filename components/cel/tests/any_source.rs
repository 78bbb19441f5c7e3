//! Sources that nobody meant to write: what parses is checked or refused, what is checked runs within its limit, and nothing panics.

use cel::{Env, EvalError, Program, Type, Value, Variables};
use proptest::prelude::*;
use serde_json::json;

const WORDS: &[&str] = &[
    "self",
    "x",
    "self.l",
    "self.m",
    "self.s",
    "1",
    "-1",
    "9223372036854775807",
    "2u",
    "1.5",
    "'s'",
    "'é'",
    "b'x'",
    "null",
    "true",
    "[1, 2]",
    "{'a': 1}",
    " + ",
    " - ",
    " * ",
    " / ",
    " % ",
    " == ",
    " != ",
    " < ",
    " >= ",
    " && ",
    " || ",
    " in ",
    " ? ",
    " : ",
    "(",
    ")",
    "[",
    "]",
    ".",
    ".?a",
    "[?0]",
    ".a",
    ".size()",
    ".all(v, v",
    ".map(v, v",
    ".exists_one(v, v",
    ".filter(v, v)",
    "has(self.a)",
    "size(",
    "int(",
    "string(",
    "double(",
    "bytes(",
    "duration('1h')",
    "timestamp('2020-01-01T00:00:00Z')",
    ".matches('a+')",
    ".split(',')",
    ".replace('a', 'b')",
    ".substring(1)",
    ".charAt(",
    ".indexOf('x')",
    ".join()",
    ".sum()",
    ".min()",
    ".isSorted()",
    "quantity('1Gi')",
    "ip('::1')",
    "cidr('10.0.0.0/8')",
    "url('http://x')",
    "semver('1.2.3')",
    ".getYear()",
    "optional.of(",
    ".orValue(",
    "format.named('uri')",
    "sets.contains(",
    "math.greatest(",
    ".reverse()",
    ".find('a')",
    ", ",
];

fn try_out(source: &str) -> Result<(), TestCaseError> {
    let env = Env::new([("self", Type::Dyn), ("x", Type::Int)]);
    let Ok(checked) = cel::compile(source, &env) else { return Ok(()) };
    let data = json!({"a": 1, "s": "text", "l": [3, 1, 2], "m": {"k": "v"}, "d": 1.5});
    let variables: Variables<'_> = [("self", Value::json(&data, None)), ("x", Value::Int(5))].into_iter().collect();
    let program = Program::new(checked);
    for limit in [0, 10, 5_000] {
        let outcome = program.run(&variables, limit);
        // Only what went over the limit says that it did.
        prop_assert!(
            outcome.cost <= limit || matches!(outcome.value, Err(EvalError::CostExceeded)),
            "{} of {limit}: {source}",
            outcome.cost
        );
        let _ = outcome.value.map(|value| value.to_json());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_words_are_answered(words in prop::collection::vec(prop::sample::select(WORDS), 0..12)) {
        try_out(&words.concat())?;
    }

    #[test]
    fn calls_of_anything_with_anything_are_answered(
        target in prop::sample::select(WORDS), operator in prop::sample::select(WORDS), argument in prop::sample::select(WORDS), close in 0..3usize
    ) {
        try_out(&format!("{target}{operator}{argument}{}", ")".repeat(close)))?;
        try_out(&format!("[{target}{operator}].map(v, v{operator}{argument}{})", ")".repeat(close)))?;
    }
}

/// The empty list that a filter starts from goes over the limit before the range turns out to be none.
#[test]
fn what_goes_over_the_limit_before_another_error_says_so() -> Result<(), TestCaseError> {
    try_out("self.s.filter(v, v)")
}
