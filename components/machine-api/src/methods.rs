//! Every method of the API: which roles may call it, whether it changes the machine, and whether maintenance mode serves
//! it. A test compares this table with the compiled definitions, so a method can't be added without deciding these.

/// A role, as a client certificate's organization names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    Admin,
    /// Looks at everything but secrets, restarts services and machines.
    Operator,
    /// Looks at everything but secrets.
    Reader,
    /// Takes and lists etcd snapshots.
    EtcdBackup,
}

impl Role {
    /// All roles.
    pub const ALL: [Role; 4] = [Role::Admin, Role::Operator, Role::Reader, Role::EtcdBackup];

    /// The organization that names the role.
    pub fn organization(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::Operator => "operator",
            Role::Reader => "reader",
            Role::EtcdBackup => "etcd-backup",
        }
    }

    /// The role that an organization names, if any.
    pub fn from_organization(organization: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.organization() == organization)
    }
}

/// Who may call a method on a machine that is in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Clients whose certificate names one of these roles.
    Roles(&'static [Role]),
    /// Machines that present the join token; no certificate.
    JoinToken,
    /// Nobody: the method exists in maintenance mode only.
    Never,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// The request path, `/strake.machine.v1alpha1.<Service>/<Method>`.
    pub path: &'static str,
    /// Who may call it.
    pub access: Access,
    /// Whether a call may change the machine. Such calls are logged with who and what.
    pub changes: bool,
    /// Whether maintenance mode serves it, to who knows the pairing code.
    pub maintenance: bool,
}

const ADMIN: Access = Access::Roles(&[Role::Admin]);
const OPERATE: Access = Access::Roles(&[Role::Admin, Role::Operator]);
const READ: Access = Access::Roles(&[Role::Admin, Role::Operator, Role::Reader]);
const BACKUP: Access = Access::Roles(&[Role::Admin, Role::Operator, Role::EtcdBackup]);
const ANY_ROLE: Access = Access::Roles(&Role::ALL);

macro_rules! methods {
    ($($service:literal / $method:literal: $access:expr, $changes:expr, $maintenance:expr;)*) => {
        /// The table.
        pub const METHODS: &[Method] = &[$(Method {
            path: concat!("/strake.machine.v1alpha1.", $service, "/", $method),
            access: $access,
            changes: $changes,
            maintenance: $maintenance,
        }),*];
    };
}

methods! {
    // service / method                       who                changes  maintenance
    "MachineService" / "Version":             ANY_ROLE,          false,   true;
    "MachineService" / "ApplyConfig":         ADMIN,             true,    true;
    "MachineService" / "ConfirmConfig":       ADMIN,             true,    false;
    "MachineService" / "Install":             Access::Never,     true,    true;
    "MachineService" / "Unlock":              ADMIN,             true,    true;
    "MachineService" / "Bootstrap":           ADMIN,             true,    false;
    "MachineService" / "Reboot":              OPERATE,           true,    false;
    "MachineService" / "Shutdown":            OPERATE,           true,    false;
    "MachineService" / "Reset":               ADMIN,             true,    false;
    "MachineService" / "Upgrade":             ADMIN,             true,    false;
    "MachineService" / "Rollback":            ADMIN,             true,    false;
    "MachineService" / "Kubeconfig":          ADMIN,             true,    false;
    "ServiceService" / "List":                READ,              false,   false;
    "ServiceService" / "Restart":             OPERATE,           true,    false;
    "ServiceService" / "Stats":               READ,              false,   true;
    "LogService" / "Logs":                    READ,              false,   false;
    "LogService" / "KernelLog":               READ,              false,   false;
    "ResourceService" / "Kinds":              READ,              false,   true;
    "ResourceService" / "Get":                READ,              false,   true;
    "ResourceService" / "Watch":              READ,              false,   false;
    "FileService" / "List":                   ADMIN,             false,   false;
    "FileService" / "Read":                   ADMIN,             false,   false;
    "ImageService" / "List":                  READ,              false,   false;
    "ImageService" / "Import":                ADMIN,             true,    false;
    "EtcdService" / "Status":                 READ,              false,   false;
    "EtcdService" / "Members":                READ,              false,   false;
    "EtcdService" / "Snapshot":               BACKUP,            true,    false;
    "EtcdService" / "ListSnapshots":          BACKUP,            false,   false;
    "EtcdService" / "Recover":                ADMIN,             true,    false;
    "JoinService" / "Join":                   Access::JoinToken, true,    false;
    "JoinService" / "Leave":                  Access::JoinToken, true,    false;
}

/// The row of a request path.
pub fn method(path: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_method_has_exactly_one_entry() {
        let descriptors = defined_methods();
        let defined: BTreeSet<String> = descriptors
            .iter()
            .flat_map(|(service, methods)| methods.iter().map(move |method| format!("/strake.machine.v1alpha1.{service}/{method}")))
            .collect();
        let listed: BTreeSet<String> = METHODS.iter().map(|method| method.path.to_owned()).collect();
        assert_eq!(defined, listed);
        assert_eq!(listed.len(), METHODS.len(), "a method is listed twice");
    }

    /// Services and methods of the definitions, read from the text: `service X {` and `rpc Y(`.
    fn defined_methods() -> Vec<(String, Vec<String>)> {
        let mut services: Vec<(String, Vec<String>)> = Vec::new();
        for name in ["machine", "node", "cluster"] {
            let path = format!("{}/proto/strake/machine/v1alpha1/{name}.proto", env!("CARGO_MANIFEST_DIR"));
            for line in std::fs::read_to_string(path).unwrap().lines() {
                if let Some(service) = line.strip_prefix("service ") {
                    services.push((service.trim_end_matches(" {").to_owned(), Vec::new()));
                } else if let Some(rpc) = line.trim_start().strip_prefix("rpc ") {
                    services.last_mut().unwrap().1.push(rpc.split('(').next().unwrap().to_owned());
                }
            }
        }
        assert!(services.len() >= 8, "the definitions were not read: {services:?}");
        services
    }

    #[test]
    fn a_reader_changes_nothing() {
        for method in METHODS.iter().filter(|method| method.changes) {
            if let Access::Roles(roles) = method.access {
                assert!(!roles.contains(&Role::Reader), "{}", method.path);
            }
        }
    }

    #[test]
    fn an_admin_may_call_whatever_has_roles() {
        for method in METHODS {
            if let Access::Roles(roles) = method.access {
                assert!(roles.contains(&Role::Admin), "{}", method.path);
            }
        }
    }

    #[test]
    fn organizations_name_roles() {
        for role in Role::ALL {
            assert_eq!(Role::from_organization(role.organization()), Some(role));
        }
        assert_eq!(Role::from_organization("Admin"), None);
    }
}
