package main

import (
	"bytes"
	"os"
	"slices"
	"sync/atomic"

	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/rest"
	logsapi "k8s.io/component-base/logs/api/v1"
)

// logFilter passes on the log entries of the Kubernetes components that an operator has to see. Each entry comes as
// one write that begins with its severity: I, W, E or F.
type logFilter struct {
	verbose bool
	// silent drops all but fatal entries, while parts are stopped that others still try to reach.
	silent atomic.Bool
}

func (f *logFilter) Write(entry []byte) (int, error) {
	if f.verbose || bytes.HasPrefix(entry, []byte("F")) || bytes.HasPrefix(entry, []byte("E")) && !f.silent.Load() && !isNoise(entry) {
		return os.Stderr.Write(entry)
	}
	return len(entry), nil
}

// noise is what kube-apiserver calls errors at every healthy start.
var noise = []string{
	"The manifest file is empty",
	`namespaces \"kube-system\" not found`,
	"Found stale data, removed previous endpoints on kubernetes service",
}

func isNoise(entry []byte) bool {
	return slices.ContainsFunc(noise, func(text string) bool { return bytes.Contains(entry, []byte(text)) })
}

// configureLogging sets up logging for all components of the process. It can be done only once, so neither of them
// does it again.
func configureLogging(verbose bool) (*logFilter, error) {
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	filter := &logFilter{verbose: verbose}
	streams := &logsapi.LoggingOptions{ErrorStream: filter, InfoStream: filter}
	return filter, logsapi.ValidateAndApplyWithOptions(logsapi.NewLoggingConfiguration(), streams, utilfeature.DefaultFeatureGate)
}
