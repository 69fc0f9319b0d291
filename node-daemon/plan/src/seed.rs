//! Lays out the seed image from which cloud-init reads its first-boot data: an ISO 9660 file system labelled CIDATA, as
//! the NoCloud source expects it.

mod iso;

const LABEL: &str = "CIDATA";

/// What goes into the image.
#[derive(Clone)]
pub struct Seed {
    /// Identity of the instance: a new one makes cloud-init run again.
    pub instance_id: String,
    /// Host name.
    pub local_hostname: String,
    /// User data.
    pub user_data: Option<String>,
    /// Network configuration.
    pub network_config: Option<String>,
}

/// The image; none if the data is larger than an image can be.
pub fn nocloud(seed: &Seed) -> Option<Vec<u8>> {
    let meta_data =
        serde_json::json!({"instance-id": seed.instance_id, "local-hostname": seed.local_hostname});
    let mut contents = vec![
        // JSON is YAML, and quotes whatever needs it.
        ("meta-data", format!("{meta_data}\n").into_bytes()),
        ("user-data", seed.user_data.clone().unwrap_or_else(|| "#cloud-config\n{}\n".into()).into_bytes()),
    ];
    if let Some(network_config) = &seed.network_config {
        contents.push(("network-config", network_config.clone().into_bytes()));
    }
    iso::image(LABEL, &contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_images_of_the_same_data_are_the_same() {
        let contents = [("user-data", b"a".to_vec())];
        assert_eq!(iso::image("CIDATA", &contents), iso::image("CIDATA", &contents));
    }
}
