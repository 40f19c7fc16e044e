// What torch asks of a GPU before it will differentiate on one, answered without any: one device, one stream, and
// events that have always happened. Nothing is computed, as all tensors there are fake.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

constexpr auto kGpu = c10::DeviceType::CUDA;
const c10::Device kTheGpu(kGpu, 0);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<kGpu> {
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, kTheGpu); }
  c10::Device getDevice() const override { return kTheGpu; }
  c10::Device exchangeDevice(c10::Device) const override { return kTheGpu; }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};

struct CUDAHooks : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
};

// Before those of a torch that was built for CUDA.
at::RegistererCUDAHooksRegistry hooks(
    "CUDAHooks", c10::REGISTRY_PREFERRED, at::CUDAHooksRegistry(), at::RegistererCUDAHooksRegistry::DefaultCreator<CUDAHooks>);

c10::impl::DeviceGuardImplRegistrar registrar(kGpu, new Guard);

}  // namespace
