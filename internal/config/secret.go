package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"gpuserver"
)

// maxSecret bounds what is read of a secret's file, in bytes.
const maxSecret = 64 << 10

// Secret says where a secret is. Exactly one field is given. The secret itself
// is never part of a Config, so that printing one cannot show it.
type Secret struct {
	File       Path   `json:"file,omitempty" jsonschema:"A file that holds it."`
	Env        string `json:"env,omitempty" jsonschema:"An environment variable that holds it."`
	Credential string `json:"credential,omitempty" jsonschema:"A systemd credential (LoadCredential=) that holds it."`
}

// String says where the secret is.
func (s Secret) String() string {
	switch {
	case s.File != "":
		return "file " + string(s.File)
	case s.Env != "":
		return "environment variable " + s.Env
	case s.Credential != "":
		return "systemd credential " + s.Credential
	}
	return "no secret"
}

// Given reports whether s names a secret at all.
func (s Secret) Given() bool { return s != Secret{} }

// Read gets the secret, without white space at its end. The error names the
// place, never the content.
func (s Secret) Read() (Revealed, error) {
	data, err := s.read()
	data = bytes.TrimRight(data, " \t\r\n")
	if err == nil && len(data) == 0 {
		err = errors.New("it is empty")
	}
	if err != nil {
		return Revealed{}, &gpuserver.Error{
			Kind: gpuserver.KindInvalid, Op: "config: read secret", Err: err,
			Public: fmt.Sprintf("the secret in %s cannot be read; put it there, readable for the server only", s),
		}
	}
	return Revealed{data}, nil
}

func (s Secret) read() ([]byte, error) {
	switch {
	case s.File != "":
		return readBounded(string(s.File))
	case s.Credential != "":
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return nil, errors.New("CREDENTIALS_DIRECTORY is not set: systemd sets it for a unit with LoadCredential=")
		}
		return readBounded(filepath.Join(dir, filepath.Base(s.Credential)))
	case s.Env != "":
		v, ok := os.LookupEnv(s.Env)
		if !ok {
			return nil, errors.New("it is not set")
		}
		return []byte(v), nil
	}
	return nil, errors.New("no place is given")
}

// placedSecret is a secret with the place in the file that names it.
type placedSecret struct {
	secret  Secret
	problem Problem // without a text
}

// CheckSecrets reads every secret that the file names, as the service would,
// and gives an error like Load's for those that cannot be read.
func (c *Config) CheckSecrets() error {
	var problems Problems
	for _, p := range c.secrets {
		if _, err := p.secret.Read(); err != nil {
			p.problem.Text = err.Error()
			problems = append(problems, p.problem)
		}
	}
	return problems.err(c.Path)
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err == nil && len(data) > maxSecret {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxSecret)
	}
	return data, err
}

const redacted = "[redacted]"

// Revealed is a secret that was read. However it is printed, it shows nothing.
type Revealed struct{ value []byte }

// Bytes gives the secret itself.
func (r Revealed) Bytes() []byte { return bytes.Clone(r.value) }

// Text gives the secret itself.
func (r Revealed) Text() string { return string(r.value) }

// String hides the secret.
func (r Revealed) String() string { return redacted }

// GoString hides the secret from %#v.
func (r Revealed) GoString() string { return redacted }

// Format hides the secret from every verb of fmt.
func (r Revealed) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText hides the secret from encoders.
func (r Revealed) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue hides the secret from slog.
func (r Revealed) LogValue() slog.Value { return slog.StringValue(redacted) }
