package provision

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v4"

	"gpuserver"
	"gpuserver/internal/cloud/openstack"
)

// credential makes the application credential and writes it down. It belongs to its
// user, so that the user has to log in: with a password that is made for it and
// forgotten. The file is made first, since the secret is told once only.
func (a *applier) credential(ctx context.Context, c Change) (err error) {
	want := a.d.Credential
	f, err := os.OpenFile(want.File, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return &gpuserver.Error{Kind: gpuserver.KindInvalid, Err: err, Public: fmt.Sprintf("%s cannot be made, which the credential would be written to; nothing was changed", want.File)}
	}
	defer func() {
		err2 := f.Close()
		if err == nil && err2 != nil {
			err = written(want.File, err2)
		}
		if err != nil {
			_ = os.Remove(want.File)
		}
	}()
	id, secret, err := a.makeCredential(ctx, c.Name)
	if err != nil {
		return err
	}
	text, err := a.cloudsFile(id, secret)
	if err == nil {
		_, err = f.Write(text)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return written(want.File, err)
	}
	a.note = fmt.Sprintf("its secret is in %s, as entry %s, and nowhere else; give the file to the service's user", want.File, want.Entry)
	return nil
}

// written is the error of a secret that was lost on its way to the file.
func written(file string, err error) error {
	return &gpuserver.Error{Kind: gpuserver.KindUnavailable, Err: err, Public: fmt.Sprintf("the secret could not be written to %s and is lost; delete the application credential, then apply", filepath.Clean(file))}
}

func (a *applier) makeCredential(ctx context.Context, name string) (id, secret string, err error) {
	if a.password == "" { // the user was there before
		a.password = newPassword()
		err = a.send(ctx, "give the user a new password", openstack.Identity, "PATCH", "users/"+a.f.User, object{"user": object{"password": a.password}})
		if err != nil {
			return "", "", err
		}
	}
	var answer struct {
		Made struct {
			ID     string `json:"id"`
			Secret string `json:"secret"`
		} `json:"application_credential"`
	}
	body := object{"application_credential": object{"name": name, "description": a.d.Mark}}
	// A new password ends the tokens of the user, with a clock of whole seconds: one of
	// the same second is refused, too.
	for try := 0; ; try++ {
		var user *openstack.API
		if user, err = a.api.LogInAs(ctx, a.f.User, a.password, a.f.Project); err != nil {
			return "", "", err
		}
		err = user.Call(ctx, "create application credential "+name, openstack.Identity, "POST", "users/"+a.f.User+"/application_credentials", body, &answer)
		user.Close()
		if gpuserver.KindOf(err) != gpuserver.KindUnavailable || try == 2 {
			return answer.Made.ID, answer.Made.Secret, err
		}
		select {
		case <-time.After(a.second):
		case <-ctx.Done():
			return "", "", ctx.Err()
		}
	}
}

// newPassword gives one that nobody can guess, and that rules for passwords like.
func newPassword() string { return rand.Text() + "-aZ9!" }

// cloudsFile gives the text of a clouds.yaml for the service.
func (a *applier) cloudsFile(id, secret string) ([]byte, error) {
	at, err := a.api.Access()
	if err != nil {
		return nil, err
	}
	entry := object{
		"auth_type": "v3applicationcredential",
		"auth":      object{"auth_url": at.AuthURL, "application_credential_id": id, "application_credential_secret": secret},
	}
	for key, value := range map[string]string{"region_name": at.Region, "interface": at.Interface, "cacert": at.CAFile} {
		if value != "" {
			entry[key] = value
		}
	}
	return yaml.Dump(object{"clouds": object{a.d.Credential.Entry: entry}})
}
