//! The CEL expressions that select devices: what they see of a device, and what they may cost.

use std::sync::LazyLock;

use cel::{
    Env, Type, cost, library,
    schema::{Decl, MAX_REQUEST},
};

use crate::validation::{ErrorList, FieldError};

/// Domains in the attributes of a device, and attributes in one of them.
const MAX_ATTRIBUTES: u64 = 32;
/// Bytes of a driver's name.
const MAX_DRIVER: u64 = 63;
/// What an expression may cost for one device.
const MAX_COST: u64 = 1_000_000;

/// A device, as expressions see it.
fn device() -> &'static Decl {
    static DECL: LazyLock<Decl> = LazyLock::new(|| {
        let by_domain = |value: Decl| Decl::map(Decl::map(value, Some(MAX_ATTRIBUTES)), Some(MAX_ATTRIBUTES));
        let members = [
            ("driver", Decl::simple(Type::String, 2, MAX_DRIVER)),
            ("attributes", by_domain(Decl::simple(Type::Dyn, 1, MAX_REQUEST))),
            ("capacity", by_domain(Decl::simple(Type::Opaque(library::QUANTITY), 2, MAX_REQUEST))),
            ("allowMultipleAllocations", Decl::simple(Type::Bool, 4, 0)),
        ];
        Decl::plain_object("kubernetes.DRADevice", members.map(|(name, decl)| (name.to_owned(), decl, true)))
    });
    &DECL
}

/// An expression compiles, says yes or no, and is not too costly.
pub fn check(source: &str, path: &str, e: &mut ErrorList) {
    match cel::compile(source, &Env::new([("device", device().ty.clone())])) {
        Err(issues) => e.push(FieldError::invalid(path, source, format!("compilation failed: {issues}"))),
        Ok(checked) if !matches!(checked.result(), Type::Bool | Type::Dyn) => {
            let why = format!("must evaluate to bool or the unknown type, not {}", checked.result());
            e.push(FieldError::invalid(path, source, why));
        }
        Ok(checked) if cost::estimate(&checked, device()).max > MAX_COST => {
            e.push(FieldError::forbidden(path, "too complex, exceeds cost limit"));
        }
        Ok(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_about_devices() {
        let said = |source: &str| {
            let mut e = ErrorList::new();
            check(source, "x", &mut e);
            e.iter().map(ToString::to_string).collect::<String>()
        };
        for good in [
            "true",
            "device.driver == 'x'",
            "device.attributes['a.b'].c == 1 && device.allowMultipleAllocations",
            "device.capacity['a.b'].mem.compareTo(quantity('1Gi')) >= 0",
            "device.attributes['a.b'].c",
            "device.attributes.all(a, device.attributes[a].exists(b, b.startsWith('x')))",
        ] {
            assert_eq!(said(good), "", "{good}");
        }
        for (bad, wanted) in [
            ("device.driver ==", "compilation failed: ERROR: <input>:1:17: Syntax error"),
            ("device.nope == 1", "compilation failed: ERROR: <input>:1:7: undefined field 'nope'"),
            ("device.driver", "must evaluate to bool or the unknown type, not string"),
            ("1", "must evaluate to bool or the unknown type, not int"),
            (
                "device.attributes.all(a, device.attributes.all(b, device.attributes.all(c, device.attributes.all(d, true))))",
                "x: Forbidden: too complex, exceeds cost limit",
            ),
        ] {
            assert!(said(bad).contains(wanted), "{bad}: {}", said(bad));
        }
    }
}
