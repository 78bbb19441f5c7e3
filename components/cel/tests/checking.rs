//! What the checker refuses, in which words, and what expressions are estimated to cost.

use cel::{
    Env, Type, cost,
    schema::{Decl, ListKind},
};

fn string(max: u64) -> Decl {
    Decl::simple(Type::String, 2, max)
}

fn decl() -> Decl {
    Decl::object(
        "self",
        [
            ("a".to_owned(), Decl::simple(Type::Int, 1, 0), false),
            ("s".to_owned(), string(40), false),
            ("l".to_owned(), Decl::list(string(40), Some(5), ListKind::Atomic), false),
            ("big".to_owned(), Decl::list(string(3_145_726), None, ListKind::Atomic), false),
            ("m".to_owned(), Decl::map(Decl::simple(Type::Int, 1, 0), Some(7)), false),
        ],
    )
}

fn error(source: &str) -> String {
    let env = Env::new([("self", decl().ty)]);
    cel::compile(source, &env).map_or_else(|e| e.to_string(), |c| format!("ok: {}", c.result()))
}

#[test]
fn mistakes_are_told_with_their_place() {
    for (source, want) in [
        ("self.zz > 0", "ERROR: <input>:1:5: undefined field 'zz'\n | self.zz > 0\n | ....^"),
        (
            "self.a > \"x\"",
            "ERROR: <input>:1:8: found no matching overload for '_>_' applied to '(int, string)'\n | self.a > \"x\"\n | .......^",
        ),
        ("foo(self)", "ERROR: <input>:1:4: undeclared reference to 'foo' (in container '')\n | foo(self)\n | ...^"),
        ("other.a == 1", "ERROR: <input>:1:1: undeclared reference to 'other' (in container '')\n | other.a == 1\n | ^"),
        ("\"a\".matches(\"[\")", "ERROR: <input>:1:13: invalid matches argument\n | \"a\".matches(\"[\")\n | ............^"),
        (
            "self.s.size(1)",
            "ERROR: <input>:1:12: found no matching overload for 'size' applied to 'string.(int)'\n | self.s.size(1)\n | ...........^",
        ),
        ("[1, 'a']", "ERROR: <input>:1:5: expected type 'int' but found 'string'\n | [1, 'a']\n | ....^"),
        (
            "1.all(x, true)",
            "ERROR: <input>:1:1: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)\n | 1.all(x, true)\n | ^",
        ),
        ("self.s.x", "ERROR: <input>:1:7: type 'string' does not support field selection\n | self.s.x\n | ......^"),
        ("timestamp('x')", "ERROR: <input>:1:11: invalid timestamp argument\n | timestamp('x')\n | ..........^"),
    ] {
        assert_eq!(error(source), want);
    }
}

#[test]
fn types_are_found() {
    for (source, want) in [
        ("self.l.map(x, x.size())", "list(int)"),
        ("self.l.filter(x, x != '')", "list(string)"),
        ("self.m", "map(string, int)"),
        ("self.?a", "optional_type(int)"),
        ("self.?a.orValue(1)", "int"),
        ("self.m.transformMap(k, v, k)", "map(string, string)"),
        ("true ? dyn(1) : 'a'", "dyn"),
        ("[]", "list(dyn)"),
        ("cel.bind(x, self.l, x[0])", "string"),
        ("type(1)", "type(dyn)"),
        ("format.named('uri')", "optional_type(kubernetes.NamedFormat)"),
        ("size(self.l) > 0 && 'a' in self.l", "bool"),
        ("1 == 1.0", "ok"),
    ] {
        let got = error(source);
        if want == "ok" {
            assert!(got.contains("no matching overload"), "{got}");
        } else {
            assert_eq!(got, format!("ok: {want}"), "{source}");
        }
    }
}

#[test]
fn costs_grow_with_what_data_can_be() {
    let d = decl();
    let env = Env::new([("self", d.ty.clone())]);
    for (source, min, max) in [
        ("true", 0, 0),
        // self, its field, the comparison.
        ("self.a > 0", 3, 3),
        ("has(self.a)", 1, 1),
        ("self.a > 0 && self.a < 9", 3, 6),
        ("self.s == 'abc'", 3, 3),
        ("self.s.contains('a')", 2, 6),
        // Each of up to five elements: the condition, the accumulator, the element and a comparison.
        ("self.l.all(x, x == 'a')", 3, 28),
        ("[1, 2]", 10, 10),
        ("{'a': 1}", 30, 30),
        ("self.s.matches('^a.*b$')", 4, 12),
        ("self.m.all(k, true)", 3, 3 + 7 * 3),
    ] {
        let c = cel::compile(source, &env).unwrap_or_else(|e| panic!("{source}: {e}"));
        let r = cost::estimate(&c, &d);
        assert_eq!((r.min, r.max), (min, max), "{source}");
    }
    let of = |source: &str| cost::estimate(&cel::compile(source, &env).unwrap(), &d).max;
    assert!(of("self.big.all(a, self.big.all(b, self.big.all(c, a == b || b == c)))") > 1_000_000_000);
    assert!(of("'a is ' + string(self.a)") > 1_000_000_000, "the length of a number's text is not known");
    assert!(of("self.big.all(a, a.matches('a'))") > 10_000_000_000);
}
