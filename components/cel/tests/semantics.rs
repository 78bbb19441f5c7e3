//! What expressions evaluate to, by the language's specification and Kubernetes' libraries.

use cel::{
    Env, EvalError, Program, Type, Value, Variables,
    schema::{Decl, ListKind},
};
use serde_json::{Value as Json, json};

fn env() -> Env {
    Env::new([("self", Type::Dyn), ("x", Type::Dyn), ("n", Type::Dyn)])
}

fn run(source: &str) -> Result<Json, String> {
    let data = json!({"a": 1, "s": "text", "l": [3, 1, 2], "m": {"k": "v", "z": null}, "d": 1.5, "e": [], "objects": [{"n": 1}, {"n": 2}]});
    let checked = cel::compile(source, &env()).map_err(|e| format!("compile: {e}"))?;
    let program = Program::new(checked);
    let variables: Variables<'_> = [("self", Value::json(&data, None)), ("x", Value::Int(5)), ("n", Value::Null)].into_iter().collect();
    match program.run(&variables, 1_000_000).value {
        Ok(v) => Ok(v.to_json().unwrap_or_else(|| json!(v.type_of().to_string()))),
        Err(e) => Err(e.to_string()),
    }
}

fn all_true(sources: &[&str]) {
    for s in sources {
        assert_eq!(run(s), Ok(json!(true)), "{s}");
    }
}

fn fails(cases: &[(&str, &str)]) {
    for (s, want) in cases {
        assert_eq!(run(s).unwrap_err(), *want, "{s}");
    }
}

#[test]
fn arithmetic_is_checked() {
    all_true(&[
        "1 + 2 * 3 == 7",
        "7 / 2 == 3 && -7 / 2 == -3 && 7 % 3 == 1 && -7 % 3 == -1",
        "1.5 * 2.0 == 3.0",
        "5u - 2u == 3u",
        "-(-5) == 5 && --5 == 5",
        "0x10 == 16 && -0x10 == -16",
        "1e3 == 1000.0 && .5 == 0.5",
        "9223372036854775807 > 9223372036854775806",
        "-9223372036854775808 < 0",
        "1 < 2.5 && 2u > 1 && 1.0 <= 1u",
    ]);
    fails(&[
        ("9223372036854775807 + 1", "integer overflow"),
        ("-9223372036854775808 - 1", "integer overflow"),
        ("-(-9223372036854775807 - 1)", "integer overflow"),
        ("9223372036854775807 * 2", "integer overflow"),
        ("(-9223372036854775807 - 1) / -1", "integer overflow"),
        ("0u - 1u", "unsigned integer overflow"),
        ("1 / 0", "division by zero"),
        ("1 % 0", "modulus by zero"),
        ("self.a / 0", "division by zero"),
    ]);
}

#[test]
fn logic_absorbs_errors_from_either_side() {
    all_true(&[
        "true || self.nope == 1",
        "self.nope == 1 || true",
        "!(false && self.nope == 1)",
        "!(self.nope == 1 && false)",
        "self.l.exists(i, i / (i - 3) >= 0 || i == 1)",
        "[0, 1].exists(i, 1 / i == 1)",
        "![0, 2].all(i, 1 / i == 1)",
        "true ? true : self.nope",
    ]);
    fails(&[
        ("false || self.nope == 1", "no such key: nope"),
        ("self.nope == 1 && true", "no such key: nope"),
        ("[0, 1].all(i, 1 / i == 1)", "division by zero"),
        ("[0, 2].exists(i, 1 / i == 1)", "division by zero"),
        ("[0, 1].map(i, 1 / i)", "division by zero"),
        ("self.s && true", "no such overload"),
        ("self.a ? 1 : 2", "no such overload"),
    ]);
}

#[test]
fn fields_and_elements_are_found_or_not() {
    all_true(&[
        "self.a == 1 && self['a'] == 1",
        "has(self.a) && !has(self.nope) && has(self.m.z)",
        "self.m.z == null",
        "'k' in self.m && !('q' in self.m) && 2 in self.l && !(9 in self.l)",
        "self.l[0] == 3 && self.l.size() == 3 && size(self.m) == 2",
        "{'a': 1, 'b': 2}.a == 1",
        "{dyn(1): 'x', dyn(2u): 'y', dyn(true): 'z'}[dyn(2)] == 'y'",
        "self.objects.map(o, o.n) == [1, 2]",
    ]);
    fails(&[
        ("self.nope", "no such key: nope"),
        ("self.m['q']", "no such key: q"),
        ("self.l[3]", "index out of bounds: 3"),
        ("self.l[-1]", "index out of bounds: -1"),
        ("{'a': 1}['b']", "no such key: b"),
        ("{'a': 1, 'a': 2}", "Failed with repeated key"),
        ("self.a.b", "no such overload"),
    ]);
}

#[test]
fn values_are_compared_across_types() {
    all_true(&[
        "dyn(1) == 1.0 && dyn(1) == 1u && dyn(1u) == dyn(1.0)",
        "dyn(1) != '1' && dyn(null) != 0",
        "[1, 2] == [1, 2] && [1, 2] != [2, 1] && [dyn(1), 2.0] == [dyn(1.0), 2]",
        "{'a': dyn(1), 'b': [1]} == {'b': [1], 'a': dyn(1)}",
        "type(1) == int && type('a') == string && type([]) == list && type({}) == map && type(null) == null_type",
        "type(timestamp('2024-01-01T00:00:00Z')) == google.protobuf.Timestamp",
        "b'abc' == bytes('abc') && b'\\xff' != b'\\xfe'",
        "'\\u00e9' == 'é' && r'\\n' == '\\\\n' && '''a\nb''' == 'a\\nb'",
        "0.0 / 0.0 != 0.0 / 0.0",
    ]);
}

#[test]
fn macros_fold() {
    all_true(&[
        "[1, 2, 3].all(i, i > 0) && [].all(i, false) && ![].exists(i, true)",
        "[1, 2, 3].exists_one(i, i > 2) && ![1, 2, 3].exists_one(i, i > 1)",
        "[1, 2, 3].filter(i, i % 2 == 1) == [1, 3]",
        "[1, 2, 3].map(i, i * 2) == [2, 4, 6] && [1, 2, 3].map(i, i > 1, i * 2) == [4, 6]",
        "{'a': 1, 'b': 2}.all(k, k in ['a', 'b']) && {'a': 1}.map(k, k) == ['a']",
        "[1, 2].all(i, [3, 4].all(j, i < j))",
        "[[1], [2, 3]].map(l, l.map(i, i + 1)) == [[2], [3, 4]]",
        "cel.bind(v, 3, v * v) == 9 && cel.bind(a, 1, cel.bind(b, a + 1, a + b)) == 3",
        "[5, 6].all(i, v, i < v) && [5, 6].exists(i, v, i == 1 && v == 6) && [5, 6].existsOne(i, v, v == 6)",
        "{'a': 1}.all(k, v, k == 'a' && v == 1)",
        "[1, 2].transformList(i, v, i + v) == [1, 3] && [1, 2].transformList(i, v, i > 0, v) == [2]",
        "{'a': 1, 'b': 2}.transformMap(k, v, v + 1) == {'a': 2, 'b': 3}",
        "{'a': 1, 'b': 2}.transformMap(k, v, k == 'a', v + 1) == {'a': 2}",
        "{'a': 'x'}.transformMapEntry(k, v, {v: k}) == {'x': 'a'}",
        "self.l.map(i, i) + [9] == [3, 1, 2, 9]",
    ]);
}

#[test]
fn optionals_chain() {
    all_true(&[
        "self.?a.hasValue() && !self.?nope.hasValue() && self.?nope.?deep.orValue(7) == 7",
        "self.?m.?k.value() == 'v' && self.m[?'q'].orValue('d') == 'd' && self.l[?0].value() == 3 && !self.l[?9].hasValue()",
        "optional.of(1).or(optional.none()).value() == 1 && optional.none().or(optional.of(2)).value() == 2",
        "[?optional.of(1), ?optional.none(), 2] == [1, 2] && {?'a': optional.none(), 'b': 1} == {'b': 1}",
        "optional.of(2).optMap(v, v * 2).value() == 4 && !optional.none().optMap(v, v).hasValue()",
        "optional.of(2).optFlatMap(v, optional.of(v + 1)).value() == 3",
        "optional.ofNonZeroValue('') == optional.none() && optional.ofNonZeroValue('a').hasValue()",
    ]);
    fails(&[("optional.none().value()", "optional.none() dereference")]);
}

#[test]
fn text_functions() {
    all_true(&[
        "'hello'.startsWith('he') && 'hello'.endsWith('lo') && 'hello'.contains('ell') && 'héllo'.size() == 5",
        "'héllo'.charAt(1) == 'é' && 'hello'.charAt(5) == ''",
        "'hello hello'.indexOf('lo') == 3 && 'hello hello'.indexOf('lo', 4) == 9 && 'hello'.indexOf('x') == -1 && 'a'.indexOf('') == 0",
        "'hello hello'.lastIndexOf('lo') == 9 && 'hello hello'.lastIndexOf('lo', 8) == 3",
        "'aXb'.lowerAscii() == 'axb' && 'aXb'.upperAscii() == 'AXB' && '  a '.trim() == 'a'",
        "'a,b,c'.split(',') == ['a', 'b', 'c'] && 'a,b,c'.split(',', 2) == ['a', 'b,c'] && 'abc'.split('') == ['a', 'b', 'c']",
        "'tacocat'.substring(4) == 'cat' && 'tacocat'.substring(0, 4) == 'taco'",
        "'aaa'.replace('a', 'b') == 'bbb' && 'aaa'.replace('a', 'b', 2) == 'bba' && 'ab'.replace('', '_') == '_a_b_'",
        "['a', 'b'].join() == 'ab' && ['a', 'b'].join('-') == 'a-b'",
        "'%s is %d or %.2f, %x, %b, %e%%'.format(['x', 5, 1.5, 255, 5, 1234.5]) == 'x is 5 or 1.50, ff, 101, 1.234500e+03%'",
        "'%s'.format([[dyn(1), 'a', dyn({'k': null})]]) == '[1, a, {k: null}]'",
        "strings.quote('a\"\\n') == '\"a\\\\\"\\\\n\"'",
        "'abc 123 def 456'.find('[0-9]+') == '123' && 'abc'.find('[0-9]+') == ''",
        "'12 34 56'.findAll('[0-9]+') == ['12', '34', '56'] && '12 34 56'.findAll('[0-9]+', 2) == ['12', '34']",
        "matches('abc', '^a.c$') && 'xabcx'.matches('abc')",
        "string(1) == '1' && string(1.5) == '1.5' && string(true) == 'true' && string(1e30) == '1e+30' && string(b'a') == 'a'",
        "int('42') == 42 && double('1.5') == 1.5 && bool('true') && uint('7') == 7u && int(3.9) == 3",
    ]);
    fails(&[
        ("'abc'.charAt(9)", "index out of range: 9"),
        ("'abc'.substring(2, 1)", "invalid substring range. start: 2, end: 1"),
        ("uint(-1)", "unsigned integer overflow"),
        ("int(1e30)", "integer overflow"),
    ]);
}

#[test]
fn lists_and_sets() {
    all_true(&[
        "[1, 2, 2].isSorted() && ![2, 1].isSorted() && ['a', 'b'].isSorted()",
        "[1, 2, 3].sum() == 6 && [1.5, 2.5].sum() == 4.0 && [3, 1, 2].min() == 1 && [3, 1, 2].max() == 3",
        "[1, 2, 1].indexOf(1) == 0 && [1, 2, 1].lastIndexOf(1) == 2 && [1].indexOf(5) == -1",
        "sets.contains([1, 2, 3], [2]) && sets.equivalent([1, 2, 2], [2, 1]) && !sets.intersects([1], [2])",
    ]);
    fails(&[("self.e.min()", "min called on empty list")]);
}

#[test]
fn times() {
    all_true(&[
        "timestamp('2024-02-29T12:30:15.5Z').getFullYear() == 2024",
        "timestamp('2024-02-29T12:30:15.5Z').getMonth() == 1 && timestamp('2024-02-29T12:30:15.5Z').getDate() == 29",
        "timestamp('2024-02-29T12:30:15.5Z').getDayOfMonth() == 28 && timestamp('2024-02-29T12:30:15Z').getDayOfYear() == 59",
        "timestamp('2024-02-29T12:30:15Z').getDayOfWeek() == 4 && timestamp('2024-02-29T12:30:15Z').getHours('-02:00') == 10",
        "timestamp('2024-02-29T12:30:15.5Z').getMilliseconds() == 500 && timestamp('2024-02-29T12:30:15Z').getMinutes() == 30",
        "duration('1h30m').getMinutes() == 90 && duration('90s') == duration('1m30s') && string(duration('1.5s')) == '1.5s'",
        "timestamp('2024-01-01T00:00:00Z') + duration('24h') == timestamp('2024-01-02T00:00:00Z')",
        "timestamp('2024-01-02T00:00:00Z') - timestamp('2024-01-01T00:00:00Z') == duration('24h')",
        "timestamp('2024-01-01T00:00:00Z') < timestamp('2024-01-01T00:00:01Z') && int(timestamp('1970-01-01T00:01:00Z')) == 60",
        "string(timestamp('2024-01-01T01:00:00+01:00')) == '2024-01-01T00:00:00Z'",
    ]);
    fails(&[("timestamp('9999-12-29T23:59:59Z') + duration('240h')", "timestamp overflow")]);
}

#[test]
fn kubernetes_libraries() {
    all_true(&[
        "quantity('1Gi').isGreaterThan(quantity('1Mi')) && isQuantity('1.5') && !isQuantity('x')",
        "quantity('50k').add(20) == quantity('50020') && quantity('50k').sub(quantity('20k')).compareTo(quantity('30k')) == 0",
        "quantity('50000000G').isInteger() && quantity('50k').asInteger() == 50000 && quantity('50.5').asApproximateFloat() == 50.5",
        "quantity('-1').sign() == -1",
        "isIP('127.0.0.1') && isIP('::1') && !isIP('127.0.0.1.2') && !isIP('::ffff:1.2.3.4') && !isIP('010.0.0.1')",
        "ip('127.0.0.1').family() == 4 && ip('127.0.0.1').isLoopback() && ip('::1').family() == 6 && ip('0.0.0.0').isUnspecified()",
        "ip.isCanonical('2001:db8::abcd') && !ip.isCanonical('2001:DB8::ABCD') && ip('192.168.0.1').isGlobalUnicast()",
        "ip('fe80::1').isLinkLocalUnicast() && ip('224.0.0.1').isLinkLocalMulticast()",
        "cidr('192.168.0.0/24').containsIP('192.168.0.1') && cidr('192.168.0.0/24').containsIP(ip('192.168.0.1'))",
        "cidr('192.168.0.0/24').containsCIDR('192.168.0.0/25') && !cidr('192.168.0.0/24').containsCIDR('192.168.0.0/23')",
        "cidr('192.168.0.1/24').masked() == cidr('192.168.0.0/24') && cidr('10.0.0.0/8').prefixLength() == 8",
        "cidr('192.168.0.1/24').ip() == ip('192.168.0.1') && string(cidr('10.0.0.0/8')) == '10.0.0.0/8' && !isCIDR('1.2.3.4')",
        "url('https://user@example.com:80/a%20b?k=1&k=2').getHost() == 'example.com:80'",
        "url('https://example.com:80/').getHostname() == 'example.com' && url('https://example.com:80/').getPort() == '80'",
        "url('https://[::1]:80/').getHostname() == '::1' && url('/p').getScheme() == '' && url('https://a/with%20s').getEscapedPath() == '/with%20s'",
        "url('https://a/?k=1&k=2&j=%2B').getQuery() == {'k': ['1', '2'], 'j': ['+']}",
        "isURL('https://x') && !isURL('../rel') && !isURL('mailto:x@y') && isURL('/abs')",
        "semver('1.2.3').major() == 1 && semver('1.2.3').minor() == 2 && semver('1.2.3').patch() == 3",
        "semver('1.0.0-alpha').isLessThan(semver('1.0.0')) && semver('1.0.0-alpha.2').isLessThan(semver('1.0.0-alpha.10'))",
        "!isSemver('1.2') && isSemver('v1.2', true) && semver('v01.01', true) == semver('1.1.0')",
        "format.dns1123Label().validate('contour') == optional.none() && format.named('dns1123Label').value().validate('A').hasValue()",
        "!format.named('nope').hasValue() && format.date().validate('2024-13-01').hasValue() && !format.uuid().validate('123e4567-e89b-12d3-a456-426614174000').hasValue()",
        "!format.qualifiedName().validate('a.b/c').hasValue() && format.labelValue().validate('-').hasValue()",
    ]);
}

#[test]
fn data_is_read_as_its_schema_says() {
    let string = || Decl::simple(Type::String, 2, 100);
    let int = || Decl::simple(Type::Int, 1, 0);
    let item = Decl::object("item", [("k".to_owned(), string(), true), ("v".to_owned(), int(), false)]);
    let decl = Decl::object(
        "root",
        [
            ("when".to_owned(), Decl::simple(Type::Timestamp, 21, 30), false),
            ("long".to_owned(), Decl::simple(Type::Duration, 4, 32), false),
            ("raw".to_owned(), Decl::simple(Type::Bytes, 2, 10), false),
            ("ratio".to_owned(), Decl::simple(Type::Double, 1, 0), false),
            ("a-b".to_owned(), int(), false),
            ("set".to_owned(), Decl::list(string(), None, ListKind::Set), false),
            ("keyed".to_owned(), Decl::list(item, None, ListKind::Map(vec!["k".into()])), false),
        ],
    );
    let data = json!({"when": "2024-01-01T00:00:00Z", "long": "90s", "raw": "YWI=", "ratio": 2, "a-b": 1, "set": ["a", "b"], "hidden": 1,
        "keyed": [{"k": "x", "v": 1}, {"k": "y", "v": 2}]});
    let old = json!({"set": ["b", "a"], "keyed": [{"k": "y", "v": 2}, {"k": "x", "v": 1}]});
    let env = Env::new([("self", decl.ty.clone()), ("oldSelf", decl.ty.clone())]);
    for source in [
        "self.when.getFullYear() == 2024",
        "self.long.getSeconds() == 90",
        "self.raw == b'ab'",
        "self.ratio == 2.0",
        "self.a__dash__b == 1",
        "self.set == oldSelf.set",
        "self.set + ['a', 'c'] == ['b', 'c', 'a']",
        "self.keyed == oldSelf.keyed",
        "(self.keyed + oldSelf.keyed.filter(i, i.k == 'x')).size() == 2",
        "self.keyed.all(i, i.v > 0)",
        "!has(oldSelf.when)",
    ] {
        let program = Program::new(cel::compile(source, &env).unwrap_or_else(|e| panic!("{source}: {e}")));
        let variables: Variables<'_> =
            [("self", Value::json(&data, Some(&decl))), ("oldSelf", Value::json(&old, Some(&decl)))].into_iter().collect();
        let got = program.run(&variables, 100_000).value;
        assert!(matches!(got, Ok(Value::Bool(true))), "{source}: {got:?}");
    }
    assert!(cel::compile("self.hidden == 1", &env).unwrap_err().to_string().contains("undefined field 'hidden'"));
}

#[test]
fn evaluation_stops_at_its_limit() {
    let source = "[1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, a + b + c > 0)))";
    let program = Program::new(cel::compile(source, &env()).unwrap());
    let out = program.run(&Variables::new(), 1000);
    assert_eq!(out.value.unwrap_err(), EvalError::CostExceeded);
    let out = program.run(&Variables::new(), 1_000_000);
    assert!(matches!(out.value, Ok(Value::Bool(true))) && out.cost > 5000, "{}", out.cost);
    // What absorbs other errors does not absorb this one.
    let program = Program::new(cel::compile("[1, 2, 3].map(i, i * 2).size() > 0 || true", &env()).unwrap());
    assert_eq!(program.run(&Variables::new(), 5).value.unwrap_err(), EvalError::CostExceeded);
}

/// Expressions that double what they have at every step.
fn doubling(step: &str, end: &str) -> String {
    let mut source = String::new();
    for i in 1..60 {
        source.push_str(&format!("cel.bind(v{i}, {}, ", step.replace('@', &format!("v{}", i - 1))));
    }
    format!(
        "cel.bind(v0, {}, {source}{}",
        if step.contains('\'') || step.contains("+ @ ") { "'x'" } else { "[1]" },
        end.replace('@', "v59")
    ) + &")".repeat(60)
}

#[test]
fn small_expressions_make_no_large_values() {
    for (step, end) in [("@ + @", "size(@) > 0"), ("[@, @]", "@ == @"), ("[@, @]", "'%s'.format([@]) == ''"), ("@ + @ + ''", "size(@) > 0")]
    {
        let source = doubling(step, end);
        let program = Program::new(cel::compile(&source, &env()).unwrap_or_else(|e| panic!("{source}: {e}")));
        let value = program.run(&Variables::new(), 1_000_000).value;
        assert!(value.is_err(), "{step}: {value:?}");
    }
    // Each step of a chain is in the tree once.
    let chain = format!("optional.of(1){}.hasValue()", ".optMap(v, v + 1)".repeat(40));
    assert_eq!(run(&chain), Ok(json!(true)));
}
