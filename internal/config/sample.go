package config

import _ "embed"

//go:embed sample.yaml
var sample string

// Sample gives a configuration file with a comment on every setting. It is
// valid once the secrets that it names exist.
func Sample() string { return sample }
