package main

import (
	"net/url"

	"gpuserver/internal/api"
	"gpuserver/internal/dashboard"
	"gpuserver/internal/metrics"
)

// newAPI makes the API with the metrics and the pages.
func (s *server) newAPI() (*api.API, error) {
	around := actions{s.fleet, s}
	probe := api.NewProbe(s.db)
	s.metrics = metrics.New(s.db, around, version())
	o := api.Options{
		DB: s.db, Actions: around, Version: version(), Probe: probe, Log: s.log, Metrics: s.metrics.Handler(), Observe: s.metrics.Answer,
		Pages: dashboard.New(dashboard.Options{DB: s.db, Around: around, Writable: probe.Check, Version: version(), Log: s.log}),
	}
	if u, err := url.Parse(string(s.cfg.Server.PublicURL)); err == nil && u.Host != "" {
		o.Hosts = append(o.Hosts, u.Hostname())
	}
	for _, t := range s.cfg.API.Tokens {
		hash := t.Hash
		if t.Secret != nil {
			r, err := t.Secret.Read()
			if err != nil {
				return nil, err
			}
			hash = api.HashToken(r.Text())
		}
		o.Tokens = append(o.Tokens, api.Token{Name: t.Name, Role: api.Role(t.Role), Hash: hash})
	}
	return api.New(o)
}
