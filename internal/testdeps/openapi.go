package testdeps

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

// GitHubAPI gives GitHub's OpenAPI description of the named paths, such as
// "/repos/{owner}/{repo}/actions/runners". The whole is 13 MB and takes seconds
// to resolve, so what is kept in the cache is cut to them and to the components
// that they refer to. It names no servers: those are hosts that no test speaks to.
func GitHubAPI(t testing.TB, paths ...string) *openapi3.T {
	t.Helper()
	whole := NPM(t, "@octokit/openapi", "23.0.2", "package/generated/api.github.com.json")
	paths = slices.Sorted(slices.Values(paths))
	// The 2 is the version of what cutAPI makes of the description.
	sum := sha256.Sum256([]byte("2\n" + whole + "\n" + strings.Join(paths, "\n")))
	cut, err := Cached("openapi/"+hex.EncodeToString(sum[:16])+".json", func(w io.Writer) error {
		return cutAPI(w, whole, paths)
	})
	if err != nil {
		t.Fatal(err)
	}
	doc, err := openapi3.NewLoader().LoadFromFile(cut)
	if err != nil {
		t.Fatal(err)
	}
	doc.Servers = nil
	return doc
}

func cutAPI(w io.Writer, whole string, paths []string) error {
	data, err := os.ReadFile(whole)
	if err != nil {
		return err
	}
	var doc struct {
		OpenAPI    string                    `json:"openapi"`
		Info       any                       `json:"info"`
		Paths      map[string]any            `json:"paths"`
		Components map[string]map[string]any `json:"components"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return err
	}
	mendAPI(doc.Paths)
	for _, section := range doc.Components {
		mendAPI(section)
	}
	kept := make(map[string]any)
	components := make(map[string]map[string]any)
	for _, p := range paths {
		item, ok := doc.Paths[p]
		if !ok {
			return fmt.Errorf("GitHub's description has no path %s", p)
		}
		kept[p] = item
		if err := keepReferred(item, doc.Components, components); err != nil {
			return err
		}
	}
	return json.NewEncoder(w).Encode(map[string]any{
		"openapi": doc.OpenAPI, "info": doc.Info, "paths": kept, "components": components,
	})
}

// mendAPI puts right that the description wants an installation's account to be
// a user and an enterprise at once in one place, and either in another.
func mendAPI[V any](m map[string]V) {
	for k, v := range m {
		switch v := any(v).(type) {
		case map[string]any:
			if both, ok := v["allOf"]; ok && k == "account" {
				delete(v, "allOf")
				v["anyOf"] = both
			}
			mendAPI(v)
		case []any:
			for _, e := range v {
				mendAPI(map[string]any{k: e})
			}
		}
	}
}

// keepReferred copies the components that v refers to, and those that they do.
func keepReferred(v any, all, kept map[string]map[string]any) error {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			if err := keepReferred(e, all, kept); err != nil {
				return err
			}
		}
	case map[string]any:
		for k, e := range v {
			ref, ok := e.(string)
			if k != "$ref" || !ok {
				if err := keepReferred(e, all, kept); err != nil {
					return err
				}
				continue
			}
			if err := keepOne(ref, all, kept); err != nil {
				return err
			}
		}
	}
	return nil
}

// keepOne copies one component, "#/components/schemas/job".
func keepOne(ref string, all, kept map[string]map[string]any) error {
	section, name, ok := strings.Cut(strings.TrimPrefix(ref, "#/components/"), "/")
	target, have := all[section][name]
	if !ok || !have {
		return fmt.Errorf("%s refers to nothing", ref)
	}
	if kept[section] == nil {
		kept[section] = make(map[string]any)
	}
	if _, done := kept[section][name]; done {
		return nil
	}
	kept[section][name] = target
	return keepReferred(target, all, kept)
}
