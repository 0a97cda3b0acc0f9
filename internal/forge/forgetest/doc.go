// Package forgetest is a stand-in for GitHub over HTTP: an App's REST interface,
// its signed deliveries, a pool of queued jobs and the runners that take them.
//
// It behaves as GitHub does where that matters to a runner service, the
// uncomfortable parts included: a registration binds no job (any online runner
// with a job's labels takes it), deliveries are never repeated by themselves,
// calls cost points, and everything may be limited, delayed, cut or lost when a
// test asks for it. Normal answers validate against GitHub's own OpenAPI
// description (see the tests).
//
// One Server is an http.Handler. Three groups of paths: GitHub's interface under
// "/" and "/api/v3"; "/_runner/", the private protocol of the test runner
// (package runnerclient); and "/_control/", through which tests, the demo and
// the benchmark build the world, dispatch runs and inject faults (type Client).
// The methods of Server do the same within one process.
package forgetest
