package main_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// TestAPI checks what Vireo and its chart ask of a Kubernetes API, all on one server.
func TestAPI(t *testing.T) {
	t.Parallel()
	s := startServer(t, dataDir(t))
	for name, test := range map[string]func(*testing.T, *server){
		"CustomResources":      testCustomResources,
		"GarbageCollection":    testGarbageCollection,
		"Namespaces":           controllersWork,
		"AdmissionPolicy":      testAdmissionPolicy,
		"Tokens":               testTokens,
		"Anonymous":            testAnonymous,
		"CertificateSigning":   testCertificateSigning,
		"Quota":                testQuota,
		"RoleAggregation":      testRoleAggregation,
		"PriorityAndFairness":  testPriorityAndFairness,
		"Kubectl":              testKubectl,
		"InitMakesTheDefaults": testInit,
	} {
		t.Run(name, func(t *testing.T) { test(t, s) })
	}
}

var definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// define creates a custom resource definition and waits until it is served.
func define(t *testing.T, s *server, group, version, plural, kind, scope string, extra map[string]any) schema.GroupVersionResource {
	t.Helper()
	served := map[string]any{"name": version, "served": true, "storage": true, "schema": map[string]any{"openAPIV3Schema": map[string]any{
		"type": "object", "properties": map[string]any{"spec": map[string]any{
			"type": "object",
			"properties": map[string]any{
				"host": map[string]any{"type": "string"},
				"cpus": map[string]any{"type": "integer"},
			},
			"x-kubernetes-validations": []any{map[string]any{
				"rule": "!has(self.cpus) || self.cpus <= 710", "message": "at most 710 vCPUs",
			}},
		}},
	}}}
	for key, value := range extra {
		served[key] = value
	}
	crd := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": plural + "." + group},
		"spec": map[string]any{
			"group": group, "scope": scope, "versions": []any{served},
			"names": map[string]any{"plural": plural, "singular": strings.ToLower(kind), "kind": kind},
		},
	}}
	ctx := context.Background()
	client := s.dynamic(t)
	if _, err := client.Resource(definitions).Create(ctx, crd, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	resource := schema.GroupVersionResource{Group: group, Version: version, Resource: plural}
	eventually(t, plural+" are served", func() error {
		_, err := client.Resource(resource).List(ctx, metav1.ListOptions{})
		return err
	})
	return resource
}

func testCustomResources(t *testing.T, s *server) {
	resource := define(t, s, "example.org", "v1", "machines", "Machine", "Namespaced", map[string]any{
		"selectableFields": []any{map[string]any{"jsonPath": ".spec.host"}},
	})
	ctx := context.Background()
	client := s.dynamic(t).Resource(resource).Namespace("default")
	create := func(name, host string, cpus int64) error {
		_, err := client.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "example.org/v1", "kind": "Machine", "metadata": map[string]any{"name": name},
			"spec": map[string]any{"host": host, "cpus": cpus},
		}}, metav1.CreateOptions{})
		return err
	}
	if err := create("big", "a", 1024); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "at most 710 vCPUs") {
		t.Errorf("CEL rule: %v", err)
	}
	if err := errors.Join(create("one", "a", 1), create("two", "b", 2)); err != nil {
		t.Fatal(err)
	}
	list, err := client.List(ctx, metav1.ListOptions{FieldSelector: "spec.host=b"})
	if err != nil || len(list.Items) != 1 || list.Items[0].GetName() != "two" {
		t.Errorf("list by selectable field: %v %v", list, err)
	}
}

func testGarbageCollection(t *testing.T, s *server) {
	ctx := context.Background()
	maps := s.client(t).CoreV1().ConfigMaps("default")
	owner := createConfigMap(t, s.client(t), "owner")
	owned := configMap("owned", "")
	owned.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: owner.Name, UID: owner.UID}}
	if _, err := maps.Create(ctx, owned, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := maps.Delete(ctx, owner.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the owned object is collected", func() error {
		_, err := maps.Get(ctx, owned.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("still there: %v", err)
	})
}

func testAdmissionPolicy(t *testing.T, s *server) {
	ctx := context.Background()
	client := s.client(t)
	const name = "no-forbidden-names"
	policy := &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: admissionv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{
			RuleWithOperations: admissionv1.RuleWithOperations{
				Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
			},
		}}},
		Validations: []admissionv1.Validation{{Expression: "object.metadata.name != 'forbidden'", Message: "not this name"}},
	}}
	if _, err := client.AdmissionregistrationV1().ValidatingAdmissionPolicies().Create(ctx, policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	binding := &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
		PolicyName: name, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
	}}
	if _, err := client.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the policy refuses", func() error {
		_, err := client.CoreV1().ConfigMaps("default").Create(ctx, configMap("forbidden", ""), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil || !strings.Contains(err.Error(), "not this name") {
			return fmt.Errorf("got %v", err)
		}
		return nil
	})
	eventually(t, "the policy is type-checked", func() error {
		found, err := client.AdmissionregistrationV1().ValidatingAdmissionPolicies().Get(ctx, name, metav1.GetOptions{})
		if err == nil && found.Status.TypeChecking == nil {
			err = errors.New("no status")
		}
		return err
	})
}

// as is a client with a bearer token instead of the administrator's certificate.
func (s *server) as(t *testing.T, token string) kubernetes.Interface {
	t.Helper()
	config := rest.AnonymousClientConfig(s.config(t))
	config.BearerToken = token
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func testTokens(t *testing.T, s *server) {
	ctx := context.Background()
	client := s.client(t)
	account, err := client.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "host-a"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// 3607 is the number that upstream stretches to a year unless told not to.
	seconds := int64(3607)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	token, err := client.CoreV1().ServiceAccounts("default").CreateToken(ctx, account.Name, request, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(token.Status.ExpirationTimestamp.Time); left > 2*time.Hour {
		t.Errorf("the token lives %s", left)
	}
	theirs := s.as(t, token.Status.Token)
	review, err := theirs.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || review.Status.UserInfo.Username != "system:serviceaccount:default:host-a" {
		t.Errorf("the token's user: %v %v", review, err)
	}
	if _, err := theirs.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("list without a right: %v", err)
	}
	if err := client.CoreV1().ServiceAccounts("default").Delete(ctx, account.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the token dies with its account", func() error {
		_, err := theirs.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		if apierrors.IsUnauthorized(err) {
			return nil
		}
		return fmt.Errorf("got %v", err)
	})
}

func testAnonymous(t *testing.T, s *server) {
	config := s.config(t)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(config.CAData)
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	for path, want := range map[string]int{"/livez": 200, "/readyz": 200, "/healthz": 200, "/version": 401, "/api": 401, "/metrics": 401} {
		response, err := client.Get(config.Host + path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("%s without credentials: %d, want %d", path, response.StatusCode, want)
		}
	}
}

func testCertificateSigning(t *testing.T, s *server) {
	ctx := context.Background()
	requests := s.client(t).CertificatesV1().CertificateSigningRequests()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "jane"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	request, err := requests.Create(ctx, &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: "jane"}, Spec: certificatesv1.CertificateSigningRequestSpec{
		Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: raw}),
		SignerName: certificatesv1.KubeAPIServerClientSignerName,
		Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth, certificatesv1.UsageDigitalSignature},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	request.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test"}}
	if _, err := requests.UpdateApproval(ctx, request.Name, request, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the certificate is signed", func() error {
		if request, err = requests.Get(ctx, request.Name, metav1.GetOptions{}); err == nil && len(request.Status.Certificate) == 0 {
			err = fmt.Errorf("%+v", request.Status)
		}
		return err
	})
	encoded, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(s.config(t))
	config.CertData, config.KeyData = request.Status.Certificate, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: encoded})
	review, err := kubernetes.NewForConfigOrDie(config).AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || review.Status.UserInfo.Username != "jane" {
		t.Errorf("the certificate's user: %v %v", review, err)
	}
}

func testQuota(t *testing.T, s *server) {
	ctx := context.Background()
	client := s.client(t).CoreV1()
	if _, err := client.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "small"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	const counted = corev1.ResourceName("count/secrets")
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "quota"}, Spec: corev1.ResourceQuotaSpec{
		Hard: corev1.ResourceList{counted: resource.MustParse("1")},
	}}
	if _, err := client.ResourceQuotas("small").Create(ctx, quota, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the quota is counted", func() error {
		found, err := client.ResourceQuotas("small").Get(ctx, "quota", metav1.GetOptions{})
		if _, counting := found.Status.Used[counted]; err == nil && !counting {
			err = errors.New("no status")
		}
		return err
	})
	create := func(name string) error {
		_, err := client.Secrets("small").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		return err
	}
	if err := create("first"); err != nil {
		t.Errorf("within the quota: %v", err)
	}
	if err := create("second"); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "exceeded quota") {
		t.Errorf("above the quota: %v", err)
	}
}

func testRoleAggregation(t *testing.T, s *server) {
	ctx := context.Background()
	roles := s.client(t).RbacV1().ClusterRoles()
	role := &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "machines-view", Labels: map[string]string{"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{"example.org"}, Resources: []string{"machines"}, Verbs: []string{"get"}}},
	}
	if _, err := roles.Create(ctx, role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "view has the aggregated rule", func() error {
		view, err := roles.Get(ctx, "view", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, rule := range view.Rules {
			if rule.APIGroups[0] == "example.org" {
				return nil
			}
		}
		return fmt.Errorf("%d rules", len(view.Rules))
	})
}

func testPriorityAndFairness(t *testing.T, s *server) {
	config := s.config(t)
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Get(config.Host + "/api/v1/namespaces")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.Header.Get("X-Kubernetes-PF-FlowSchema-UID") == "" {
		t.Errorf("no flow schema in the answer's headers: %v", response.Header)
	}
}

func testKubectl(t *testing.T, s *server) {
	link := filepath.Join(t.TempDir(), "kubectl")
	if err := os.Symlink(binary(t), link); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{{binary(t), "kubectl"}, {link}} {
		kubectl := exec.Command(command[0], append(command[1:], "version", "-o", "json")...)
		kubectl.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(s.dir, "admin.kubeconfig"))
		text, err := kubectl.Output()
		var versions struct{ ClientVersion, ServerVersion struct{ GitVersion string } }
		if err := errors.Join(err, json.Unmarshal(text, &versions)); err != nil {
			t.Fatal(err)
		}
		if versions.ClientVersion != versions.ServerVersion || !strings.HasPrefix(versions.ClientVersion.GitVersion, "v1.") {
			t.Errorf("%v: versions %+v", command, versions)
		}
	}
}

func testInit(t *testing.T, s *server) {
	code, text := run(t, "init", "--data-dir", s.dir)
	if code == 0 || !strings.Contains(text, `no matches for kind "HostCluster"`) || !strings.Contains(text, "ensure CRDs are installed first") {
		t.Errorf("without definitions: exit code %d: %s", code, text)
	}
	define(t, s, "vireo.dev", "v1alpha1", "hostclusters", "HostCluster", "Cluster", nil)
	for range 2 {
		mustRun(t, "init", "--data-dir", s.dir)
	}
	ctx := context.Background()
	review, err := s.client(t).AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: "anybody", Groups: []string{"system:authenticated"},
		ResourceAttributes: &authorizationv1.ResourceAttributes{Group: "vireo.dev", Resource: "hostclusters", Name: "default", Verb: "use"},
	}}, metav1.CreateOptions{})
	if err != nil || !review.Status.Allowed {
		t.Errorf("use of the default cluster: %v %v", review, err)
	}
}
