//! `sightline api`: the HTTP role alone.

use std::process::ExitCode;

use anyhow::Context;
use queue::Queue;

use crate::bounds::Bounds;
use crate::config::ApiArgs;
use crate::output::announce;
use crate::setup::{self, Models};
use crate::{data, stop};

/// Serves until stopped.
pub(crate) async fn run(args: ApiArgs) -> anyhow::Result<ExitCode> {
    let stop = stop::on_signal()?;
    stop::in_time(&stop);
    let models = Models::open(&args.models)?;
    let listener = setup::bind(&args.http).await?;
    // A queue that runs elsewhere limits each stream on its own, so each topic gets a share. Our own broker limits all
    // streams together, whatever their shares.
    let share = setup::topic_share(args.topics.queue_bytes, None, 0, models.repository.iter().count())?;
    let defaults = setup::topic_defaults(&args.topics, Some(share));
    let address = data::queue_address(&args.queue)?;
    let queue = Queue::connect(&address, "sightline api", defaults).await?;
    let config = setup::http_config(&args.http, queue.max_payload(), &args.queue.data.data)?;
    let bounds = Bounds::of_this_process();
    let config = ::api::Config {
        connections_max: bounds.connections_alone(),
        bodies_bytes_max: bounds.bodies_bytes(),
        ..config
    };
    setup::check_queue(&queue, args.topics.replicas.get(), args.queue_monitor.as_deref()).await;
    let index = setup::index(args.http.database.as_deref(), &args.queue.data.data).await?;
    setup::check_listen(&args.http, &queue, &index, &args.queue.data.data).await?;
    let own = listener.local_addr().context("find the API's own address")?;
    announce!("API on {}, queue at {address}", setup::api_url(&args.http, own));
    ::api::serve(config, models.repository, queue.clone(), index, listener, stop).await;
    queue.flush().await;
    Ok(ExitCode::SUCCESS)
}
