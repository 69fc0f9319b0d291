package main

import (
	_ "embed"
	"errors"
	"os"

	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/kubectl/pkg/cmd"
)

//go:embed defaults.yaml
var defaults []byte

// initDefaults makes the HostCluster "default" and the right of every authenticated user to use it, as kubectl apply
// does: it can be repeated, and says so where Vireo's definitions are not installed.
func initDefaults(kubeconfig string) error {
	// kubectl's reader of manifests knows the process's own standard input only. A pipe holds more than the defaults.
	input, output, err := os.Pipe()
	if err != nil {
		return err
	}
	_, err = output.Write(defaults)
	if err := errors.Join(err, output.Close()); err != nil {
		return err
	}
	os.Stdin = input
	kubectl := cmd.NewKubectlCommand(cmd.KubectlOptions{IOStreams: genericiooptions.IOStreams{In: input, Out: os.Stdout, ErrOut: os.Stderr}})
	kubectl.SetArgs([]string{"--kubeconfig", kubeconfig, "apply", "--server-side", "--field-manager", userAgent, "-f", "-"})
	return kubectl.Execute()
}
