//! Certificate authorities, leaf issuance and rotation plans.
