package userlist

import (
	"encoding/json"
	"fmt"

	"gpuserver/internal/cirun"
)

// maxUsers bounds how many users one list may name.
const maxUsers = 50_000

// Parse reads a list as Cirun has it, {"users":[{"github":"login","id":123}]},
// or a plain JSON list of such users or of logins. Other keys are ignored; a
// user with neither login nor id is left out. A list without "users" is an
// error, so that an error page in JSON does not look like an empty list.
func Parse(data []byte) ([]cirun.User, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("it has more than %d bytes", MaxSize)
	}
	var doc struct {
		Users *[]user `json:"users"`
	}
	var list []user
	if err := json.Unmarshal(data, &doc); err == nil && doc.Users != nil {
		list = *doc.Users
	} else if errList := json.Unmarshal(data, &list); errList != nil || list == nil {
		if err == nil {
			err = errList
		}
		return nil, fmt.Errorf("it is not {\"users\":[{\"github\":\"login\",\"id\":1}]}: %w", err)
	}
	if len(list) > maxUsers {
		return nil, fmt.Errorf("it names more than %d users", maxUsers)
	}
	out := make([]cirun.User, 0, len(list))
	for _, u := range list {
		if u.Login != "" || u.ID != 0 {
			out = append(out, cirun.User(u))
		}
	}
	return out, nil
}

// user reads one user: a login, or an object with "github" (or "login") and
// "id".
type user cirun.User

// UnmarshalJSON implements json.Unmarshaler.
func (u *user) UnmarshalJSON(data []byte) error {
	var login string
	if json.Unmarshal(data, &login) == nil {
		*u = user{Login: login}
		return nil
	}
	var o struct {
		GitHub string `json:"github"`
		Login  string `json:"login"`
		ID     int64  `json:"id"`
	}
	if err := json.Unmarshal(data, &o); err != nil {
		return err
	}
	if o.ID < 0 {
		return fmt.Errorf("the id %d of a user is negative", o.ID)
	}
	if o.GitHub == "" {
		o.GitHub = o.Login
	}
	*u = user{Login: o.GitHub, ID: o.ID}
	return nil
}
