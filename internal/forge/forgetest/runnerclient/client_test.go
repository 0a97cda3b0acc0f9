package runnerclient

import (
	"encoding/base64"
	"strings"
	"testing"
)

func jit(runner, credentials string) string {
	enc := base64.StdEncoding.EncodeToString
	return enc([]byte(`{".runner":"` + enc([]byte(runner)) + `",".credentials":"` + enc([]byte(credentials)) + `"}`))
}

func TestParse(t *testing.T) {
	good := jit(`{"ServerUrl":"http://forge:1","AgentName":"r"}`, `{"Scheme":"Bearer","Data":{"Token":"s3cret"}}`)
	c, err := Parse(good + "\n")
	if err != nil || c.Settings.AgentName != "r" || c.token != "s3cret" {
		t.Fatalf("%+v, %v", c, err)
	}
	for name, bad := range map[string]string{
		"empty": "", "not base64": "%", "not JSON": base64.StdEncoding.EncodeToString([]byte("x")), "no files": jit("", ""),
		"no token": jit(`{"ServerUrl":"http://forge"}`, `{}`), "no server": jit(`{}`, `{"Data":{"Token":"s3cret"}}`),
	} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the error shows the token: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(jit(`{"ServerUrl":"http://forge"}`, `{"Data":{"Token":"t"}}`))
	f.Add("e30=")
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := Parse(text); err == nil && (c.Settings.ServerURL == "" || c.token == "") {
			t.Fatal("accepted without server or token")
		}
	})
}
