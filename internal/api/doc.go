// Package api is what people and programs ask the running server: a JSON API
// with its OpenAPI description, health, metrics and the pages, with bearer
// tokens and roles.
//
// It reads the store itself and asks the fleet, through Actions, for what is
// more than a read. One place turns an error's kind into a status, and only its
// public sentence into text.
//
// The http.Server around it belongs to the caller, and so do its time-outs: a
// ReadHeaderTimeout (10 s) and an IdleTimeout (2 min) are needed; ReadTimeout
// and WriteTimeout must stay 0, as followed consoles and events are answers
// that go on. Bodies are bounded here.
package api
