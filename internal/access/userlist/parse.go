package userlist

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"

	"gpuserver/internal/cirun"
)

// maxUsers bounds how many users one list may name.
const maxUsers = 50_000

// Parse reads a list as Cirun has it, {"users":[{"github":"login","id":123}]},
// or a plain JSON list of such users or of logins. Other keys are ignored; a
// user that cannot be read, or has neither login nor id, is left out and takes
// nobody with it. A list without "users", or one of which no user can be read,
// is an error, so that neither an error page in JSON nor another form of list
// looks like an empty one.
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
	if len(out) == 0 && len(list) > 0 {
		return nil, errors.New("none of its users can be read; each has to be {\"github\":\"login\",\"id\":1}")
	}
	return out, nil
}

// user reads one user: a login, or an object with "github" (or "login") and
// "id".
type user cirun.User

// UnmarshalJSON implements json.Unmarshaler. What cannot be read is the zero
// user.
func (u *user) UnmarshalJSON(data []byte) error {
	*u = user{}
	var login string
	if json.Unmarshal(data, &login) == nil {
		u.Login = login
		return nil
	}
	var o struct {
		GitHub string      `json:"github"`
		Login  string      `json:"login"`
		ID     json.Number `json:"id"` // or the same as a text
	}
	if json.Unmarshal(data, &o) != nil {
		return nil
	}
	id, err := int64(0), error(nil)
	if o.ID != "" {
		id, err = o.ID.Int64()
	}
	if err == nil && id >= 0 {
		*u = user{Login: cmp.Or(o.GitHub, o.Login), ID: id}
	}
	return nil
}
