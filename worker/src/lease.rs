//! Keeps a lease alive for as long as this worker holds the job.

use queue::client::Delivery;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::report::{Report, Reporter};

/// Renews a delivery's lease in the background until it is dropped.
pub(crate) struct LeaseKeeper(JoinHandle<()>);

impl LeaseKeeper {
    /// Starts renewing.
    pub(crate) fn start(delivery: &Delivery, reporter: Reporter) -> Self {
        let delivery = delivery.clone();
        Self(tokio::spawn(async move {
            let mut due = tokio::time::interval(delivery.lease().renewal_interval());
            due.set_missed_tick_behavior(MissedTickBehavior::Delay);
            due.tick().await;
            loop {
                due.tick().await;
                match delivery.renew().await {
                    Ok(()) => reporter.send(&Report::Renewed { job: delivery.id.clone() }),
                    Err(queue::SettleError::LeaseLost) => {
                        tracing::warn!(job_id = %delivery.id, "lease lost");
                        return;
                    }
                    Err(error) => tracing::warn!(job_id = %delivery.id, %error, "lease not renewed; retrying"),
                }
            }
        }))
    }
}

impl Drop for LeaseKeeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}
