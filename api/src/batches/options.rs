//! Options of a batch: those of a job, applied to all its jobs, and a few more.

use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Required};

use crate::error::ApiError;
use crate::jobs::Options;

/// Most items in one batch.
pub(super) const ITEMS_MAX: usize = 1_000_000;
/// The event of a batch; the others are those of its jobs.
const FINISHED: &str = "finished";

/// Checked options of one batch.
#[derive(Debug, Default)]
pub(crate) struct BatchOptions {
    /// Options of each job.
    pub(super) jobs: Options,
    pub(super) failures_max: Option<u64>,
    /// URL to notify when all of its jobs have ended.
    pub(super) webhook: Option<String>,
}

impl BatchOptions {
    /// Reads all options of a query string.
    pub(super) fn read(query: &str) -> Result<Self, ApiError> {
        let refuse = |name: &str, problem: String| ApiError::Option { name: name.into(), problem };
        let pairs: Vec<(String, String)> =
            serde_urlencoded::from_str(query).map_err(|error| refuse("query", error.to_string()))?;
        let mut options = Self::default();
        let mut events: Option<Vec<String>> = None;
        for (name, value) in &pairs {
            match name.as_str() {
                "max_failures" => {
                    let number = value.parse().map_err(|_| refuse(name, "it must be a whole number".into()))?;
                    if options.failures_max.replace(number).is_some() {
                        return Err(refuse(name, "it is given twice".into()));
                    }
                }
                "webhook_events" => {
                    let said = value.split(',').map(|event| event.trim().to_owned()).collect();
                    if events.replace(said).is_some() {
                        return Err(refuse(name, "it is given twice".into()));
                    }
                }
                "wait" => {
                    return Err(refuse(name, "a batch is not waited for; give it a webhook, or look at it".into()));
                }
                _ => options.jobs.set(name, value)?,
            }
        }
        let url = options.jobs.take_webhook();
        if events.is_some() && url.is_none() {
            return Err(refuse("webhook_events", "it needs a webhook".into()));
        }
        // A batch of thousands sends one webhook, unless its client asked for one per job.
        let events = events.unwrap_or_else(|| vec![FINISHED.to_owned()]);
        let (of_batch, of_jobs): (Vec<String>, _) = events.into_iter().partition(|event| event == FINISHED);
        if let Some(url) = &url
            && !of_jobs.is_empty()
        {
            options.jobs.set("webhook", url)?;
            options.jobs.set("webhook_events", &of_jobs.join(","))?;
        }
        options.webhook = url.filter(|_| !of_batch.is_empty());
        Ok(options)
    }
}

impl IntoParams for BatchOptions {
    fn into_params(parameter_in: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let mut parameters = Options::into_params(parameter_in);
        for parameter in &mut parameters {
            match parameter.name.as_str() {
                "webhook" => {
                    parameter.description = Some("URL to notify when the whole batch has ended.".into());
                }
                "webhook_events" => {
                    let events = "(finished|running|succeeded|failed|canceled)";
                    let pattern = format!("^{events}(,{events})*$");
                    let schema = ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern));
                    parameter.schema = Some(RefOr::from(schema.examples(["finished,failed"])));
                    parameter.description = Some(
                        "`finished` (default): once, when the batch has ended. Names of \
                         states: for each of its jobs that reaches one. Needs `webhook`."
                            .into(),
                    );
                }
                _ => {}
            }
        }
        let schema = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).examples([100]);
        let failures = ParameterBuilder::new().name("max_failures").parameter_in(ParameterIn::Query);
        let failures = failures.required(Required::False).schema(Some(schema));
        let what = "Failed jobs beyond which the batch is canceled.";
        parameters.push(failures.description(Some(what)).build());
        parameters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_told_of_once_unless_more_is_asked_for() {
        let url = "webhook=https%3A%2F%2Fexample.com%2Fdone";
        let read = |query: &str| {
            let options = BatchOptions::read(query).map_err(|error| error.to_string())?;
            let of_jobs = options.jobs.webhook_events().map(<[String]>::to_vec);
            Ok::<_, String>((options.webhook.is_some(), of_jobs, options.failures_max))
        };
        assert_eq!(read("model=m"), Ok((false, None, None)));
        assert_eq!(read(&format!("{url}&max_failures=5")), Ok((true, None, Some(5))));
        let failed = vec!["failed".to_owned()];
        assert_eq!(read(&format!("{url}&webhook_events=failed")), Ok((false, Some(failed.clone()), None)));
        assert_eq!(read(&format!("webhook_events=finished,failed&{url}")), Ok((true, Some(failed), None)));
        for (query, words) in [
            ("webhook_events=finished", "it needs a webhook"),
            ("max_failures=-1", "option `max_failures`: it must be a whole number"),
            ("max_failures=1&max_failures=1", "given twice"),
        ] {
            assert!(read(query).expect_err(query).contains(words), "{query}");
        }
        assert!(read(&format!("{url}&webhook_events=done")).expect_err("refused").contains("webhook_events"));
    }
}
