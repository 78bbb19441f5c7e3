//! The functions there are: their overloads as a table of text, read once. What they do is in [`crate::functions`].
//!
//! A line is `name(types) result`; a name that begins with a dot is a method, whose first type is that of its target. Single capital
//! letters stand for any type.

use std::{collections::HashMap, sync::OnceLock};

use crate::types::Type;

#[derive(Debug, Clone)]
pub struct Overload {
    pub method: bool,
    pub args: Vec<Type>,
    pub result: Type,
    /// How many type parameters it has; they are numbered from 0.
    pub params: usize,
}

#[derive(Debug, Default)]
pub struct Library {
    functions: HashMap<&'static str, Vec<Overload>>,
}

pub const URL: &str = "kubernetes.URL";
pub const QUANTITY: &str = "kubernetes.Quantity";
pub const IP: &str = "net.IP";
pub const CIDR: &str = "net.CIDR";
pub const FORMAT: &str = "kubernetes.NamedFormat";
pub const SEMVER: &str = "kubernetes.Semver";
pub const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";
pub const PATH_CHECK: &str = "kubernetes.authorization.PathCheck";
pub const GROUP_CHECK: &str = "kubernetes.authorization.GroupCheck";
pub const RESOURCE_CHECK: &str = "kubernetes.authorization.ResourceCheck";
pub const DECISION: &str = "kubernetes.authorization.Decision";

const OPAQUE: [&str; 11] = [URL, QUANTITY, IP, CIDR, FORMAT, SEMVER, AUTHORIZER, PATH_CHECK, GROUP_CHECK, RESOURCE_CHECK, DECISION];

const TABLE: &str = "
_?_:_(bool, A, A) A
_&&_(bool, bool) bool
_||_(bool, bool) bool
!_(bool) bool
@not_strictly_false(bool) bool
_==_(A, A) bool
_!=_(A, A) bool
-_(int) int
-_(double) double
_+_(int, int) int
_+_(uint, uint) uint
_+_(double, double) double
_+_(string, string) string
_+_(bytes, bytes) bytes
_+_(list(A), list(A)) list(A)
_+_(timestamp, duration) timestamp
_+_(duration, timestamp) timestamp
_+_(duration, duration) duration
_-_(int, int) int
_-_(uint, uint) uint
_-_(double, double) double
_-_(timestamp, timestamp) duration
_-_(timestamp, duration) timestamp
_-_(duration, duration) duration
_*_(int, int) int
_*_(uint, uint) uint
_*_(double, double) double
_/_(int, int) int
_/_(uint, uint) uint
_/_(double, double) double
_%_(int, int) int
_%_(uint, uint) uint
@in(A, list(A)) bool
@in(A, map(A, B)) bool
_[_](list(A), int) A
_[_](map(A, B), A) B
_[_](optional(list(A)), int) optional(A)
_[_](optional(map(A, B)), A) optional(B)
_[?_](list(A), int) optional(A)
_[?_](map(A, B), A) optional(B)
_[?_](optional(list(A)), int) optional(A)
_[?_](optional(map(A, B)), A) optional(B)
size(string) int
size(bytes) int
size(list(A)) int
size(map(A, B)) int
.size(string) int
.size(bytes) int
.size(list(A)) int
.size(map(A, B)) int
type(A) type
dyn(A) dyn
int(int) int
int(uint) int
int(double) int
int(string) int
int(timestamp) int
int(duration) int
uint(uint) uint
uint(int) uint
uint(double) uint
uint(string) uint
double(double) double
double(int) double
double(uint) double
double(string) double
bool(bool) bool
bool(string) bool
string(string) string
string(bool) string
string(int) string
string(uint) string
string(double) string
string(bytes) string
string(timestamp) string
string(duration) string
string(kubernetes.URL) string
string(net.IP) string
string(net.CIDR) string
bytes(bytes) bytes
bytes(string) bytes
timestamp(timestamp) timestamp
timestamp(string) timestamp
timestamp(int) timestamp
duration(duration) duration
duration(string) duration
duration(int) duration
.startsWith(string, string) bool
.endsWith(string, string) bool
.contains(string, string) bool
matches(string, string) bool
.matches(string, string) bool
.getFullYear(timestamp) int
.getFullYear(timestamp, string) int
.getMonth(timestamp) int
.getMonth(timestamp, string) int
.getDayOfYear(timestamp) int
.getDayOfYear(timestamp, string) int
.getDayOfMonth(timestamp) int
.getDayOfMonth(timestamp, string) int
.getDate(timestamp) int
.getDate(timestamp, string) int
.getDayOfWeek(timestamp) int
.getDayOfWeek(timestamp, string) int
.getHours(timestamp) int
.getHours(timestamp, string) int
.getHours(duration) int
.getMinutes(timestamp) int
.getMinutes(timestamp, string) int
.getMinutes(duration) int
.getSeconds(timestamp) int
.getSeconds(timestamp, string) int
.getSeconds(duration) int
.getMilliseconds(timestamp) int
.getMilliseconds(timestamp, string) int
.getMilliseconds(duration) int
.charAt(string, int) string
.indexOf(string, string) int
.indexOf(string, string, int) int
.lastIndexOf(string, string) int
.lastIndexOf(string, string, int) int
.lowerAscii(string) string
.upperAscii(string) string
.replace(string, string, string) string
.replace(string, string, string, int) string
.split(string, string) list(string)
.split(string, string, int) list(string)
.substring(string, int) string
.substring(string, int, int) string
.trim(string) string
.join(list(string)) string
.join(list(string), string) string
.format(string, list(dyn)) string
strings.quote(string) string
.isSorted(list(A)) bool
.sum(list(A)) A
.min(list(A)) A
.max(list(A)) A
.indexOf(list(A), A) int
.lastIndexOf(list(A), A) int
.find(string, string) string
.findAll(string, string) list(string)
.findAll(string, string, int) list(string)
sets.contains(list(A), list(A)) bool
sets.equivalent(list(A), list(A)) bool
sets.intersects(list(A), list(A)) bool
cel.@mapInsert(map(A, B), A, B) map(A, B)
cel.@mapInsert(map(A, B), map(A, B)) map(A, B)
optional.of(A) optional(A)
optional.ofNonZeroValue(A) optional(A)
optional.none() optional(A)
.hasValue(optional(A)) bool
.value(optional(A)) A
.or(optional(A), optional(A)) optional(A)
.orValue(optional(A), A) A
url(string) kubernetes.URL
isURL(string) bool
.getScheme(kubernetes.URL) string
.getHost(kubernetes.URL) string
.getHostname(kubernetes.URL) string
.getPort(kubernetes.URL) string
.getEscapedPath(kubernetes.URL) string
.getQuery(kubernetes.URL) map(string, list(string))
quantity(string) kubernetes.Quantity
isQuantity(string) bool
.sign(kubernetes.Quantity) int
.isInteger(kubernetes.Quantity) bool
.asInteger(kubernetes.Quantity) int
.asApproximateFloat(kubernetes.Quantity) double
.add(kubernetes.Quantity, kubernetes.Quantity) kubernetes.Quantity
.add(kubernetes.Quantity, int) kubernetes.Quantity
.sub(kubernetes.Quantity, kubernetes.Quantity) kubernetes.Quantity
.sub(kubernetes.Quantity, int) kubernetes.Quantity
.isLessThan(kubernetes.Quantity, kubernetes.Quantity) bool
.isGreaterThan(kubernetes.Quantity, kubernetes.Quantity) bool
.compareTo(kubernetes.Quantity, kubernetes.Quantity) int
ip(string) net.IP
.ip(net.CIDR) net.IP
isIP(string) bool
ip.isCanonical(string) bool
.family(net.IP) int
.isUnspecified(net.IP) bool
.isLoopback(net.IP) bool
.isLinkLocalMulticast(net.IP) bool
.isLinkLocalUnicast(net.IP) bool
.isGlobalUnicast(net.IP) bool
cidr(string) net.CIDR
isCIDR(string) bool
.containsIP(net.CIDR, string) bool
.containsIP(net.CIDR, net.IP) bool
.containsCIDR(net.CIDR, string) bool
.containsCIDR(net.CIDR, net.CIDR) bool
.prefixLength(net.CIDR) int
.masked(net.CIDR) net.CIDR
format.named(string) optional(kubernetes.NamedFormat)
format.dns1123Label() kubernetes.NamedFormat
format.dns1123Subdomain() kubernetes.NamedFormat
format.dns1035Label() kubernetes.NamedFormat
format.qualifiedName() kubernetes.NamedFormat
format.dns1123LabelPrefix() kubernetes.NamedFormat
format.dns1123SubdomainPrefix() kubernetes.NamedFormat
format.dns1035LabelPrefix() kubernetes.NamedFormat
format.labelValue() kubernetes.NamedFormat
format.uri() kubernetes.NamedFormat
format.uuid() kubernetes.NamedFormat
format.byte() kubernetes.NamedFormat
format.date() kubernetes.NamedFormat
format.datetime() kubernetes.NamedFormat
.validate(kubernetes.NamedFormat, string) optional(list(string))
semver(string) kubernetes.Semver
semver(string, bool) kubernetes.Semver
isSemver(string) bool
isSemver(string, bool) bool
.major(kubernetes.Semver) int
.minor(kubernetes.Semver) int
.patch(kubernetes.Semver) int
.isLessThan(kubernetes.Semver, kubernetes.Semver) bool
.isGreaterThan(kubernetes.Semver, kubernetes.Semver) bool
.compareTo(kubernetes.Semver, kubernetes.Semver) int
.path(kubernetes.authorization.Authorizer, string) kubernetes.authorization.PathCheck
.group(kubernetes.authorization.Authorizer, string) kubernetes.authorization.GroupCheck
.serviceAccount(kubernetes.authorization.Authorizer, string, string) kubernetes.authorization.Authorizer
.resource(kubernetes.authorization.GroupCheck, string) kubernetes.authorization.ResourceCheck
.subresource(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.ResourceCheck
.namespace(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.ResourceCheck
.name(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.ResourceCheck
.fieldSelector(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.ResourceCheck
.labelSelector(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.ResourceCheck
.check(kubernetes.authorization.PathCheck, string) kubernetes.authorization.Decision
.check(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.Decision
.allowed(kubernetes.authorization.Decision) bool
.reason(kubernetes.authorization.Decision) string
.errored(kubernetes.authorization.Decision) bool
.error(kubernetes.authorization.Decision) string
jsonpatch.escapeKey(string) string
";

/// Types that are ordered; the three numeric ones also among each other.
const ORDERED: [&str; 6] = ["bool", "string", "bytes", "timestamp", "duration", "int"];
const NUMBERS: [&str; 3] = ["int", "uint", "double"];

/// A type as the table writes it, and what follows.
fn read<'a>(text: &'a str, params: &mut usize) -> (Type, &'a str) {
    let text = text.trim_start();
    let end = text.find([',', '(', ')', ' ']).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let mut inner = |rest: &'a str| -> (Type, &'a str) {
        let (t, rest) = read(&rest[1..], params);
        (t, rest.trim_start())
    };
    match name {
        "list" | "optional" => {
            let (of, rest) = inner(rest);
            (if name == "list" { Type::list(of) } else { Type::optional(of) }, &rest[1..])
        }
        "map" => {
            let (k, rest) = inner(rest);
            let (v, rest) = inner(rest);
            (Type::map(k, v), &rest[1..])
        }
        "dyn" => (Type::Dyn, rest),
        "bool" => (Type::Bool, rest),
        "int" => (Type::Int, rest),
        "uint" => (Type::Uint, rest),
        "double" => (Type::Double, rest),
        "string" => (Type::String, rest),
        "bytes" => (Type::Bytes, rest),
        "timestamp" => (Type::Timestamp, rest),
        "duration" => (Type::Duration, rest),
        "type" => (Type::Type(std::sync::Arc::new(Type::Dyn)), rest),
        n if n.len() == 1 => {
            let i = usize::from(n.as_bytes()[0] - b'A');
            *params = (*params).max(i + 1);
            (Type::Param(i), rest)
        }
        n => (OPAQUE.into_iter().find(|o| *o == n).map_or(Type::Dyn, Type::Opaque), rest),
    }
}

impl Library {
    /// The one library.
    pub fn get() -> &'static Self {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        LIBRARY.get_or_init(|| {
            let mut library = Self::default();
            TABLE.lines().filter(|l| !l.is_empty()).for_each(|l| library.line(l));
            for name in ["_<_", "_<=_", "_>_", "_>=_"] {
                let all = library.functions.entry(name).or_default();
                let pairs = ORDERED.into_iter().map(|t| (t, t));
                let numbers = NUMBERS.into_iter().flat_map(|a| NUMBERS.map(|b| (a, b))).filter(|p| *p != ("int", "int"));
                for (a, b) in pairs.chain(numbers) {
                    let args = vec![read(a, &mut 0).0, read(b, &mut 0).0];
                    all.push(Overload { method: false, args, result: Type::Bool, params: 0 });
                }
            }
            library
        })
    }

    fn line(&mut self, line: &'static str) {
        // Names of operators have no parenthesis but the last.
        let open = line.find('(').unwrap_or(0);
        let (name, mut rest) = (&line[..open], &line[open + 1..]);
        let (mut args, mut params) = (Vec::new(), 0);
        while !rest.starts_with(')') {
            let (t, after) = read(rest, &mut params);
            args.push(t);
            rest = after.trim_start().trim_start_matches(',');
        }
        let (result, _) = read(&rest[1..], &mut params);
        let (method, name) = name.strip_prefix('.').map_or((false, name), |n| (true, n));
        self.functions.entry(name).or_default().push(Overload { method, args, result, params });
    }

    pub fn overloads(&self, function: &str) -> Option<&[Overload]> {
        self.functions.get(function).map(Vec::as_slice)
    }

    /// Whether a name is that of a function that is no method.
    pub fn has_function(&self, name: &str) -> bool {
        self.overloads(name).is_some_and(|o| o.iter().any(|o| !o.method))
    }

    #[cfg(test)]
    pub fn names(&self) -> impl Iterator<Item = &&'static str> {
        self.functions.keys()
    }
}
