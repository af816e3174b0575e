//! Quotas.

use crate::client::Client;
use kiln_rpc::convert::required;
use kiln_rpc::v1;
use kiln_types::{Account, Caller, Quota, QuotaLimits, Result};

impl Client {
    /// Sets limits of an account; those that are `None` stay as they are. Usage of a directory is counted in
    /// the background.
    ///
    /// # Errors
    /// `NotPermitted` unless root asks, with a credential for the whole file system; `NotDirectory`,
    /// `StaleHandle`.
    pub async fn set_quota(
        &self,
        caller: &Caller,
        account: Account,
        limits: QuotaLimits,
    ) -> Result<()> {
        self.change_quota(caller, account, limits, false).await
    }

    /// Takes away the quota of an account.
    ///
    /// # Errors
    /// As [`Self::set_quota`], and `NotFound` when there is none.
    pub async fn clear_quota(&self, caller: &Caller, account: Account) -> Result<()> {
        self.change_quota(caller, account, QuotaLimits::default(), true).await
    }

    async fn change_quota(
        &self,
        caller: &Caller,
        account: Account,
        limits: QuotaLimits,
        clear: bool,
    ) -> Result<()> {
        let turn = self.meta.turn(caller);
        let request = v1::SetQuotaRequest {
            origin: turn.origin(),
            account: Some(account.into()),
            bytes: limits.bytes,
            inodes: limits.inodes,
            clear,
        };
        self.meta.set_quota(request).await.map(drop)
    }

    /// The quota of an account, and what it uses; with any inode as a directory, that of the directory above
    /// for whose quota it counts.
    ///
    /// # Errors
    /// `NotFound` when no directory above has a quota, `NotPermitted` for other users, `StaleHandle`.
    pub async fn quota(&self, caller: &Caller, account: Account) -> Result<Quota> {
        let account = Some(account.into());
        let request = v1::GetQuotaRequest { caller: Some(caller.into()), account };
        required(Some(self.meta.get_quota(request).await?), "quota")
    }

    /// All quotas that the caller may see, in the order of accounts.
    ///
    /// # Errors
    /// What the metadata service says.
    pub async fn quotas(&self, caller: &Caller) -> Result<Vec<Quota>> {
        let mut quotas: Vec<Quota> = Vec::new();
        loop {
            let after = quotas.last().map(|quota| quota.account.into());
            let request = v1::ListQuotasRequest { caller: Some(caller.into()), after };
            let page = self.meta.list_quotas(request).await?;
            let is_end = page.end || page.quotas.is_empty();
            for quota in page.quotas {
                quotas.push(required(Some(quota), "quota")?);
            }
            if is_end {
                return Ok(quotas);
            }
        }
    }
}
