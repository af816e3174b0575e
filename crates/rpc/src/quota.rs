//! Quotas as messages.

use crate::convert::required;
use crate::v1;
use kiln_types::{Account, Error, Quota, QuotaLimits, Result, Usage};

impl From<Account> for v1::Account {
    fn from(account: Account) -> Self {
        let (kind, number) = account.to_parts();
        Self { kind: kind.into(), number }
    }
}

impl TryFrom<v1::Account> for Account {
    type Error = Error;

    fn try_from(message: v1::Account) -> Result<Self> {
        let v1::Account { kind, number } = message;
        let account = u8::try_from(kind).ok().and_then(|kind| Self::from_parts(kind, number));
        account.ok_or_else(|| Error::invalid(format!("an account of kind {kind} for {number}")))
    }
}

impl From<Quota> for v1::Quota {
    fn from(quota: Quota) -> Self {
        let Quota { account, limits, usage, counting, path } = quota;
        Self {
            account: Some(account.into()),
            bytes_max: limits.bytes,
            inodes_max: limits.inodes,
            bytes: usage.bytes,
            inodes: usage.inodes,
            counting,
            path: path.into(),
        }
    }
}

impl TryFrom<v1::Quota> for Quota {
    type Error = Error;

    fn try_from(message: v1::Quota) -> Result<Self> {
        Ok(Self {
            account: required(message.account, "account")?,
            limits: QuotaLimits { bytes: message.bytes_max, inodes: message.inodes_max },
            usage: Usage { bytes: message.bytes, inodes: message.inodes },
            counting: message.counting,
            path: message.path.to_vec(),
        })
    }
}
