package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
)

const (
	adminKubeconfigName      = "admin.kubeconfig"
	controllerKubeconfigName = "controller-manager.kubeconfig"

	kubeconfigTemplate = `apiVersion: v1
kind: Config
clusters:
- name: vireo
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: %[3]s
  user:
    client-certificate%[4]s: %[5]q
    client-key%[4]s: %[5]q
contexts:
- name: vireo
  context:
    cluster: vireo
    user: %[3]s
current-context: vireo
`
)

// writeKubeconfigs writes the administrator's kubeconfig with everything embedded, to be copied at will, and the
// controllers' one, which names its certificate by path because client-go reads a file anew when it changes.
func (p *pki) writeKubeconfigs(d *dataDir, server string) error {
	pair, err := os.ReadFile(p.pair("admin"))
	if err != nil {
		return err
	}
	base64 := base64.StdEncoding.EncodeToString
	authority := base64(encode(p.servers.Leaf.Raw))
	admin := fmt.Sprintf(kubeconfigTemplate, server, authority, "vireo-admin", "-data", base64(pair))
	controllers := fmt.Sprintf(kubeconfigTemplate, server, authority, "controller-manager", "", p.pair("controller-manager"))
	return errors.Join(
		writeFile(d.file(adminKubeconfigName), []byte(admin), 0o600),
		writeFile(d.file(controllerKubeconfigName), []byte(controllers), 0o600),
	)
}
