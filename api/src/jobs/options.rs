//! Options of a job, from the query or from a form's fields.

use std::collections::BTreeMap;
use std::time::Duration;

use queue::{IdError, JobOptions, Priority, Timestamp, TopicName, Webhook};
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{
    AdditionalProperties, AnyOfBuilder, KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type,
};
use utoipa::openapi::{RefOr, Required};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use super::wait::{WAIT_MAX, whole};
use crate::error::ApiError;
use crate::webhooks;

/// Names of all options, for messages.
const KNOWN: &str = "model, topic, version, wait, top_k, threshold, partition_key, priority, timeout, start_by, result_ttl, webhook, webhook_events, metadata, metadata.<key>";
/// Most metadata keys of a job.
const METADATA_MAX: usize = 16;
/// Length of one metadata key, bytes.
const METADATA_KEY_MAX: usize = 64;
/// Length of one metadata value or partition key, bytes.
const TEXT_MAX: usize = 512;
/// The longest timeout that a client may ask for.
const TIMEOUT_MAX: Duration = Duration::from_secs(60 * 60);
/// The most that `1y` can mean: a leap year.
const YEAR: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Checked options of one job.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Options {
    pub(crate) model: Option<String>,
    pub(crate) topic: Option<TopicName>,
    priority: Option<Priority>,
    pub(crate) version: Option<u32>,
    /// How long the answer may wait for the job's end.
    pub(super) wait: Option<Duration>,
    webhook: Option<String>,
    pub(crate) job: JobOptions,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Options {
    /// Reads all options of a query string.
    pub(crate) fn read_query(&mut self, query: &str) -> Result<(), ApiError> {
        let pairs: Vec<(String, String)> =
            serde_urlencoded::from_str(query).map_err(|error| refuse("query", &error.to_string()))?;
        pairs.iter().try_for_each(|(name, value)| self.set(name, value))
    }

    /// Sets one option. An option given twice is refused, since either value might be meant.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<(), ApiError> {
        let twice = match name {
            "model" => self.model.replace(value.to_owned()).is_some(),
            "topic" => {
                self.topic.replace(value.parse().map_err(|error: IdError| refuse(name, &error.to_string()))?).is_some()
            }
            "priority" => {
                self.job.priority = value.parse().map_err(|error: IdError| refuse(name, &error.to_string()))?;
                self.priority.replace(self.job.priority).is_some()
            }
            "wait" => {
                let seconds = whole(value).ok_or_else(|| refuse(name, "it must be a whole number of seconds"))?;
                self.wait.replace(Duration::from_secs(seconds).min(WAIT_MAX)).is_some()
            }
            "version" => self.version.replace(number(name, value, 1..=u32::MAX)?).is_some(),
            "top_k" => self.job.top_k.replace(number(name, value, 1..=10_000)?).is_some(),
            "threshold" => self.job.threshold.replace(fraction(name, value)?).is_some(),
            "partition_key" => self.job.partition_key.replace(text(name, value)?).is_some(),
            "timeout" => self.job.timeout_ms.replace(timeout(name, value)?).is_some(),
            "start_by" => self.job.start_by.replace(start_by(name, value)?).is_some(),
            "result_ttl" => self.job.result_ttl_secs.replace(result_ttl(name, value)?).is_some(),
            "webhook" => {
                let url = webhooks::checked(value)?;
                let events = self.job.webhook.take().map_or_else(Vec::new, |webhook| webhook.events);
                self.job.webhook = Some(Webhook { url: url.clone(), events });
                self.webhook.replace(url).is_some()
            }
            "webhook_events" => self.set_events(name, value)?,
            "metadata" => self.set_metadata(value)?,
            _ => match name.strip_prefix("metadata.") {
                Some(key) => self.add_metadata(key, value)?,
                None => return Err(refuse(name, &format!("unknown option; known options: {KNOWN}"))),
            },
        };
        if twice { Err(refuse(name, "it is given twice")) } else { Ok(()) }
    }

    /// Sets the job's priority: `settle` turns the requested one into the one that the caller may have.
    pub(crate) fn settle_priority(
        &mut self,
        settle: impl FnOnce(Option<Priority>) -> Result<Priority, ApiError>,
    ) -> Result<(), ApiError> {
        self.job.priority = settle(self.priority)?;
        Ok(())
    }

    /// The URL to notify.
    pub(crate) fn webhook(&self) -> Option<&str> {
        self.webhook.as_deref()
    }

    /// Removes and returns the URL to notify, for a batch that has a webhook of its own.
    pub(crate) fn take_webhook(&mut self) -> Option<String> {
        self.job.webhook = None;
        self.webhook.take()
    }

    /// States that the webhook is notified about.
    #[cfg(test)]
    pub(crate) fn webhook_events(&self) -> Option<&[String]> {
        self.job.webhook.as_ref().map(|webhook| webhook.events.as_slice())
    }

    /// Names of states, comma-separated. They may come before the webhook.
    fn set_events(&mut self, name: &str, value: &str) -> Result<bool, ApiError> {
        let events: Vec<String> = value.split(',').map(|event| event.trim().to_owned()).collect();
        if events.iter().any(|event| !["running", "succeeded", "failed", "canceled"].contains(&event.as_str())) {
            return Err(refuse(name, "it names some of running, succeeded, failed, canceled, comma-separated"));
        }
        let webhook = self.job.webhook.get_or_insert_with(|| Webhook { url: String::new(), events: Vec::new() });
        Ok(!std::mem::replace(&mut webhook.events, events).is_empty())
    }

    /// Metadata as one JSON object of strings.
    fn set_metadata(&mut self, json: &str) -> Result<bool, ApiError> {
        let problem = "it must be a JSON object of strings, or given as metadata.<key>=<value>";
        let pairs: BTreeMap<String, String> = serde_json::from_str(json).map_err(|_| refuse("metadata", problem))?;
        pairs.iter().try_fold(false, |twice, (key, value)| Ok(twice | self.add_metadata(key, value)?))
    }

    fn add_metadata(&mut self, key: &str, value: &str) -> Result<bool, ApiError> {
        let name = format!("metadata.{key}");
        if key.is_empty() || key.len() > METADATA_KEY_MAX || key.chars().any(char::is_control) {
            return Err(refuse(&name, &format!("a key has 1 to {METADATA_KEY_MAX} bytes and no control characters")));
        }
        let twice = self.metadata.insert(key.to_owned(), text(&name, value)?).is_some();
        if self.metadata.len() > METADATA_MAX {
            return Err(refuse("metadata", &format!("at most {METADATA_MAX} keys")));
        }
        Ok(twice)
    }
}

/// Each option as the API's description shows it: name, schema, meaning.
fn described() -> [(&'static str, RefOr<Schema>, &'static str); 13] {
    let of = |kind| ObjectBuilder::new().schema_type(kind);
    let string = || of(Type::String);
    let short = || string().max_length(Some(TEXT_MAX));
    let whole = |from: u32, to: u32| of(Type::Integer).minimum(Some(from)).maximum(Some(to)).into();
    let format = |name: &str, example: &str| {
        string().format(Some(SchemaFormat::Custom(name.to_owned()))).examples([example]).into()
    };
    let name = |example: &str| string().min_length(Some(1)).examples([example]).into();
    [
        ("model", name("efficientnet-lite0"), "Model to run; default: the topic's."),
        ("topic", TopicName::schema(), "Topic to queue in; default: the model's own."),
        ("version", whole(1, u32::MAX), "Version of the model; default: the one its manifest names."),
        ("top_k", whole(1, 10_000), "Most predictions or detections to return."),
        ("threshold", of(Type::Number).minimum(Some(0.0)).maximum(Some(1.0)).into(), "Lowest score to return."),
        ("partition_key", short().into(), "Jobs of one key share a partition; in an ordered topic they end in order."),
        ("priority", Priority::schema(), "Priority of the job."),
        (
            "timeout",
            format("timespan", "30s"),
            "Time limit of one attempt, up to an hour, such as `30`, `500ms`, `2m`.",
        ),
        (
            "start_by",
            format("moment-or-timespan", "2h"),
            "Deadline for the first attempt, as a date or a duration; later the job fails with `start_by_passed`.",
        ),
        ("result_ttl", format("timespan", "7d"), "Time that the result is kept: a second to a year."),
        (
            "webhook",
            string().format(Some(SchemaFormat::Custom("uri".into()))).into(),
            "An `https://` or `http://` URL to notify when the job ends.",
        ),
        (
            "webhook_events",
            string()
                .pattern(Some("^(running|succeeded|failed|canceled)(,(running|succeeded|failed|canceled))*$"))
                .examples(["succeeded,failed"])
                .into(),
            "States to notify about, comma-separated; needs `webhook`.",
        ),
        (
            "metadata",
            format("json-object-of-strings", "{\"camera\": \"7\"}"),
            "Your own keys and values, returned unchanged; also one by one as `metadata.<key>=<value>`.",
        ),
    ]
}

impl IntoParams for Options {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let parameter = |(name, schema, what): (&str, RefOr<Schema>, &str)| {
            let query = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Query).required(Required::False);
            query.schema(Some(schema)).description(Some(what)).build()
        };
        described().into_iter().map(parameter).collect()
    }
}

/// A form with an image, as the API's description has it.
pub(crate) struct Form;

impl PartialSchema for Form {
    fn schema() -> RefOr<Schema> {
        let binary = SchemaFormat::KnownFormat(KnownFormat::Binary);
        let image = ObjectBuilder::new().schema_type(Type::String).format(Some(binary));
        let form = ObjectBuilder::new().property("image", image).required("image");
        let form = form.additional_properties(Some(AdditionalProperties::FreeForm(false)));
        // Browsers send every field of a form; an empty one counts as absent.
        let empty = || ObjectBuilder::new().schema_type(Type::String).max_length(Some(0));
        let or_empty = |schema| Schema::AnyOf(AnyOfBuilder::new().item(schema).item(empty()).build());
        described().into_iter().fold(form, |form, (name, schema, _)| form.property(name, or_empty(schema))).into()
    }
}

impl ToSchema for Form {}

fn number(name: &str, value: &str, range: std::ops::RangeInclusive<u32>) -> Result<u32, ApiError> {
    let parsed = value.parse().ok().filter(|number| range.contains(number));
    parsed.ok_or_else(|| refuse(name, &format!("it must be a whole number from {} to {}", range.start(), range.end())))
}

fn fraction(name: &str, value: &str) -> Result<f32, ApiError> {
    let parsed = value.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    parsed.ok_or_else(|| refuse(name, "it must be a number from 0 to 1"))
}

fn text(name: &str, value: &str) -> Result<String, ApiError> {
    if value.len() > TEXT_MAX {
        return Err(refuse(name, &format!("it is longer than {TEXT_MAX} bytes")));
    }
    // Databases cannot store it.
    if value.contains('\0') {
        return Err(refuse(name, "it holds a NUL character; remove it"));
    }
    Ok(value.to_owned())
}

/// `30` (seconds), or with a unit: `500ms`, `2m`.
fn timeout(name: &str, value: &str) -> Result<u64, ApiError> {
    let bounded = duration(value).filter(|duration| (Duration::from_millis(1)..=TIMEOUT_MAX).contains(duration));
    let duration = bounded.ok_or_else(|| refuse(name, "it must be a time up to an hour, such as 30, 500ms or 2m"))?;
    Ok(duration.as_millis() as u64)
}

/// A moment, or a time from now. A moment that has passed is accepted: the job then fails with that reason.
fn start_by(name: &str, value: &str) -> Result<Timestamp, ApiError> {
    if let Ok(moment) = value.parse() {
        return Ok(moment);
    }
    let duration = duration(value).filter(|duration| *duration <= YEAR);
    let duration = duration.ok_or_else(|| {
        refuse(name, "it must be a moment such as 2026-12-24T18:00:00Z, or a time from now such as 90, 10m")
    })?;
    Ok(Timestamp::now().plus(duration))
}

fn result_ttl(name: &str, value: &str) -> Result<u64, ApiError> {
    let bounded = duration(value).filter(|duration| (Duration::from_secs(1)..=YEAR).contains(duration));
    Ok(bounded
        .ok_or_else(|| refuse(name, "it must be a time from a second to a year, such as 3600, 36h or 7d"))?
        .as_secs())
}

/// Seconds, or a number with a unit.
fn duration(value: &str) -> Option<Duration> {
    value.parse().ok().map(Duration::from_secs).or_else(|| humantime::parse_duration(value).ok())
}

fn refuse(name: &str, problem: &str) -> ApiError {
    ApiError::Option { name: name.chars().take(80).collect(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<Options, String> {
        let mut options = Options::default();
        options.read_query(query).map(|()| options).map_err(|error| error.to_string())
    }

    #[test]
    fn all_options_are_read() {
        let query = "model=m&version=2&top_k=3&threshold=0.5&partition_key=cam&timeout=1500ms&metadata.a=1&topic=t&priority=low";
        let options = read(query).expect("good");
        assert_eq!((options.model.as_deref(), options.version, options.job.top_k), (Some("m"), Some(2), Some(3)));
        assert_eq!((options.job.threshold, options.job.timeout_ms), (Some(0.5), Some(1500)));
        assert_eq!(options.metadata["a"], "1");
        assert_eq!((options.topic, options.job.priority), (Some("t".parse().expect("valid")), Priority::Low));
        assert_eq!(read("timeout=30").map(|o| o.job.timeout_ms), Ok(Some(30_000)));
        assert_eq!(read("metadata=%7B%22k%22%3A%22v%22%7D").expect("good").metadata["k"], "v");
    }

    #[test]
    fn what_is_wrong_is_said_with_the_options_name() {
        for (query, words) in [
            ("topk=3", "option `topk`: unknown option; known options: model, "),
            ("topic=A", "option `topic`: `A` is not a topic name"),
            ("priority=urgent", "option `priority`: `urgent` is not a priority; it must be high, normal or low"),
            ("priority=low&priority=low", "option `priority`: it is given twice"),
            ("top_k=0", "option `top_k`: it must be a whole number from 1"),
            ("threshold=NaN", "option `threshold`: it must be a number from 0 to 1"),
            ("timeout=2h", "option `timeout`: it must be a time up to an hour"),
            ("timeout=0", "option `timeout`"),
            ("model=a&model=b", "option `model`: it is given twice"),
            ("metadata=x", "option `metadata`: it must be a JSON object"),
            ("metadata.=x", "option `metadata.`: a key has"),
        ] {
            let error = read(query).expect_err(query);
            assert!(error.starts_with(words), "{error}");
        }
        let many: String = (0..17).map(|n| format!("metadata.k{n}=v&")).collect();
        assert!(read(many.trim_end_matches('&')).expect_err("refused").contains("at most 16"));
    }
}
